"""Quantizers that learn: their gradients, and where they start from."""

from __future__ import annotations

import pytest
import torch
from edgepress_host.techniques.qat.grids import LearnedRange, LearnedWeight, best_scale

LIMITS = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1)}


def weight(seed=0):
    """Four channels, the largest weights of which lie far out."""
    values = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return values * values.abs() / 10


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_gradients_of_weights_pass_straight_through_and_scales_learn_from_what_rounding_and_clipping_lose(bits):
    layer = LearnedWeight(weight(), bits)
    direction = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    (layer() * direction).sum().backward()
    scale = layer.scale.detach().reshape(-1, 1, 1, 1)
    place = layer.weight.detach() / scale
    low, high = LIMITS[bits]
    inside = (place >= low) & (place <= high)
    assert bits == 8 or not inside.all()
    assert torch.allclose(layer.weight.grad, direction * inside, atol=1e-5)
    # Equation 3 of "Learned Step Size Quantization"; the parameter is the scale's logarithm.
    slope = torch.where(inside, place.round() - place, place.clamp(low, high))
    assert torch.allclose(layer.log_ratio.grad, (slope * direction * scale).sum((1, 2, 3)), rtol=1e-3, atol=1e-5)


def test_the_gradient_of_one_bit_passes_where_a_weight_is_within_one():
    layer = LearnedWeight(4 * weight(), 1)
    layer().sum().backward()
    scale = layer.scale.detach().reshape(-1, 1, 1, 1)
    within = layer.weight.detach().abs() <= 1
    assert within.any()
    assert not within.all()
    assert torch.allclose(layer.weight.grad, within * scale)
    assert torch.allclose(layer.log_ratio.grad, (layer().detach()).sum((1, 2, 3)), rtol=1e-4)


def test_gradients_of_activations_pass_straight_through_and_their_range_learns():
    grid = LearnedRange(-1.0, 3.0)
    x = torch.linspace(-2, 4, 601, requires_grad=True)
    (grid(x) * x.detach()).sum().backward()
    inside = (x.detach() > -0.99) & (x.detach() < 2.99)
    outside = (x.detach() < -1.02) | (x.detach() > 3.02)
    assert torch.allclose(x.grad[inside], x.detach()[inside], atol=1e-5)
    assert (x.grad[outside] == 0).all()
    # Wider at both ends is better here: clipped values count for more than those that are rounded.
    assert grid.log_ratio.grad > 1
    assert grid.below.grad.abs() > 1
    assert not LearnedRange(0.0, 3.0).below.requires_grad


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_scales_start_where_the_squared_error_is_the_least(bits):
    values = weight()

    def lost(scale):
        rounded = (values / scale.reshape(-1, 1, 1, 1)).round().clamp(*LIMITS[bits]) * scale.reshape(-1, 1, 1, 1)
        return (rounded - values).square().sum((1, 2, 3))

    best = best_scale(values, bits)
    full = values.abs().amax((1, 2, 3)) / LIMITS[bits][1]
    assert bits == 8 or lost(best).sum() < 0.95 * lost(full).sum()
    for share in (0.5, 0.7, 1.0) if bits == 8 else (0.25, 0.4, 0.7, 1.0):
        assert (lost(best) <= 1.05 * lost(share * full)).all()
    assert torch.allclose(best_scale(values, 1), values.abs().mean((1, 2, 3)))
