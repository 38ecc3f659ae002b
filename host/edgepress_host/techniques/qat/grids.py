"""Quantizers: those that learn during training, and what they become afterwards, which exports as integers.

Sources: Esser et al., "Learned Step Size Quantization", 2020, equations 1 to 3 (weights; scales learn by gradient);
Bhalgat et al., "LSQ+", 2020, equations 4 to 6 (activations with a zero point); Courbariaux et al., "BinaryConnect",
2015, and Rastegari et al., "XNOR-Net", 2016 (one bit: the sign times a scale that starts at the mean magnitude).

Scales learn as the logarithm of their ratio to the initial one, so that a step of the optimiser changes each by a
share of itself (Jain et al., "Trained Quantization Thresholds", 2020); LSQ's own gradient scale would cancel in Adam.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgepress_host.press.structure import buildable

LEVELS = 255
"""The highest code of an activation; the lowest is 0."""

_CANDIDATES = 40
"""Scales that are tried for each channel before training, between a share of the full range and all of it."""

_LIMITS = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1), 1: (-1, 1)}
_SHALLOWEST = 1e-4
"""Share of a layer's largest scale below which no channel's scale goes: its bias must still fit in 32 bits."""


class LearnedWeight(nn.Module):
    """A weight (C_out, …) that is rounded to `bits` in each forward pass, with a learned scale per output channel."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.weight = nn.Parameter(weight.detach().clone())
        self.start: Tensor
        self.register_buffer("start", best_scale(weight.detach(), bits))
        self.log_ratio = nn.Parameter(torch.zeros(len(weight)))

    @property
    def scale(self) -> Tensor:
        """The learned scales (C_out,), none too small for its layer."""
        scale = self.start * torch.exp(self.log_ratio)
        return torch.maximum(scale, _SHALLOWEST * scale.detach().max())

    def forward(self) -> Tensor:
        """Return the rounded weight; gradients pass straight through the rounding."""
        return codes(self.weight, self.scale, self.bits) * _along(self.scale, self.weight)

    @torch.no_grad()
    def frozen(self) -> GridWeight:
        """Return what remains after training."""
        grid = GridWeight(self.bits)
        grid.weight = nn.Parameter(self().contiguous())
        grid.scale = self.scale.clone()
        return grid


@buildable
class GridWeight(nn.Module):
    """A weight (C_out, …) on a grid of `bits`: integers from the grid's range times `scale` (C_out,)."""

    scale: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.weight = nn.Parameter(torch.empty(0))
        self.register_buffer("scale", torch.empty(0))
        self.form = ""

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight (C_out, …) and the scales (C_out,)."""
        return self.weight.detach().numpy(), self.scale.numpy()

    @torch.no_grad()
    def lower(self, format_: str) -> None:
        """Make the forward pass tell an exporter about the integers; LiteRT's converter makes them itself."""
        decomposed()
        self.form = format_
        self.register_buffer("zero_points", torch.zeros(len(self.scale), dtype=torch.int64))
        if format_ == "onnx":
            stored = codes(self.weight, self.scale, self.bits).to(torch.int8)
            del self.weight
            self.register_buffer("stored", stored)

    def forward(self) -> Tensor:
        """Return the weight."""
        if not self.form:
            return self.weight
        operators = decomposed()
        grid = (self.scale, self.zero_points, 0, -127, 127, torch.int8)
        stored = self.stored if self.form == "onnx" else operators.quantize_per_channel(self.weight, *grid)
        value: Tensor = operators.dequantize_per_channel(stored, *grid)
        return value


class LearnedRange(nn.Module):
    """Activations in 8 bits, with a scale and a zero point that learn; where nothing is negative, the latter is 0."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)
        width = (high - low) or 1.0
        self.start: Tensor
        self.register_buffer("start", torch.tensor(width / LEVELS))
        self.log_ratio = nn.Parameter(torch.zeros(()))
        # As a share of all levels: the optimiser's steps then fit it as they fit the scales.
        self.below = nn.Parameter(torch.tensor(-low / width), requires_grad=low < 0)

    @property
    def scale(self) -> Tensor:
        """The learned scale, a scalar."""
        return self.start * torch.exp(self.log_ratio)

    @property
    def zero_point(self) -> Tensor:
        """The code of 0.0, an integer from 0 to 255 as a float."""
        return _round(self.below.clamp(0, 1) * LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded and clipped; gradients pass straight through the rounding."""
        scale, zero = self.scale, self.zero_point
        code = (_round(x.float() / scale) + zero).clamp(0, LEVELS)
        return (code - zero) * scale

    def frozen(self) -> GridActivation:
        """Return what remains after training."""
        return GridActivation(scale=float(self.scale.detach()), zero_point=int(self.zero_point.detach()))


@buildable
class GridActivation(nn.Module):
    """Activations in 8 bits: codes from 0 to 255 for ONNX, and 128 lower for LiteRT, whose kernels are int8."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point
        self.form = ""

    def lower(self, format_: str) -> None:
        """Make the forward pass tell an exporter about the integers."""
        decomposed()
        self.form = format_

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded and clipped."""
        if not self.form:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, LEVELS)
        operators = decomposed()
        least, kind = (0, torch.uint8) if self.form == "onnx" else (-128, torch.int8)
        grid = (self.scale, self.zero_point + least, least, least + LEVELS, kind)
        value: Tensor = operators.dequantize_per_tensor(operators.quantize_per_tensor(x, *grid), *grid)
        return value


def codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the integers nearest to weight / scale, per output channel; of one bit, the signs.

    The gradient is 1 where the weight is within the grid and 0 where it is clipped; of one bit, where it is within ±1.
    """
    if bits == 1:
        inside = weight.clamp(-1, 1)
        return inside + (torch.where(weight >= 0, 1.0, -1.0) - inside).detach()
    low, high = _LIMITS[bits]
    return _round((weight / _along(scale, weight)).clamp(low, high))


@torch.no_grad()
def best_scale(weight: Tensor, bits: int) -> Tensor:
    """Return the scale (C_out,) with the least squared error of each channel; of one bit, the mean magnitude."""
    flat = weight.flatten(1)
    largest = flat.abs().amax(1)
    if bits == 1:
        best = flat.abs().mean(1)
    else:
        full = largest / _LIMITS[bits][1]
        shares = torch.linspace(1.0, 0.5 if bits == 8 else 0.2, _CANDIDATES)
        tried = [full * share for share in shares]
        rounded = [codes(flat, scale.clamp_min(1e-30), bits) * scale[:, None] for scale in tried]
        chosen = torch.stack([(some - flat).square().sum(1) for some in rounded]).argmin(0)
        best = torch.stack(tried)[chosen, torch.arange(len(flat))]
    # A channel of zeros has no scale of its own; any will do.
    usual = best.max() if best.max() > 0 else torch.tensor(1.0)
    return torch.where(largest > 0, best, usual).clamp_min(float(usual) * _SHALLOWEST)


def decomposed() -> torch._ops._OpNamespace:
    """Return the operators that exporters know as quantization; importing their module registers them.

    ONNX's exporter lists what it can translate before it runs the model, so they must be there by then.
    """
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed


def _along(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def _round(x: Tensor) -> Tensor:
    """Round, with the gradient of the identity (straight-through)."""
    return x + (torch.round(x) - x).detach()
