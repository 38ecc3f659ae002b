"""A convolution as a depthwise one and a 1x1 one, from its own weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

Conv = nn.Conv1d | nn.Conv2d
_BATCH_NORM: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}


def costs(layer: Conv, multiplier: int) -> tuple[int, int]:
    """Return multiply-accumulates per place of the output: of the layer, and of the two that would replace it."""
    taps = math.prod(layer.kernel_size)
    before = layer.in_channels * taps * layer.out_channels
    return before, layer.in_channels * multiplier * (taps + layer.out_channels)


def separable(layer: Conv, multiplier: int, *, between: bool) -> nn.Sequential:
    """Return depthwise k×k (`multiplier` kernels per channel), batch norm and ReLU if `between`, pointwise 1x1.

    For each input channel i the slice W[:, i] (out, k·k) becomes the product of its first singular vectors, which is
    the best of that rank (Eckart, Young 1936); over all channels no other separable convolution is nearer to W.
    """
    kind = type(layer)
    depthwise = kind(
        layer.in_channels,
        layer.in_channels * multiplier,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.in_channels,
        bias=False,
        padding_mode=layer.padding_mode,
    )
    pointwise = kind(layer.in_channels * multiplier, layer.out_channels, 1, bias=layer.bias is not None)
    with torch.no_grad():
        slices = layer.weight.flatten(2).transpose(0, 1).double()
        left, values, right = torch.linalg.svd(slices, full_matrices=False)
        # Where a slice has fewer singular vectors than kernels are asked for, the rest have nothing to add.
        rank = min(multiplier, values.shape[1])
        root = values[:, :rank].sqrt()
        kernels, mix = depthwise.weight.zero_(), pointwise.weight.zero_()
        kernels.view(-1, multiplier, 1, *layer.kernel_size)[:, :rank] = (root[:, :, None] * right[:, :rank]).reshape(
            layer.in_channels, rank, 1, *layer.kernel_size
        )
        mix.view(layer.out_channels, -1, multiplier)[:, :, :rank] = (left[:, :, :rank] * root[:, None]).transpose(0, 1)
        if layer.bias is not None and pointwise.bias is not None:
            pointwise.bias.copy_(layer.bias)
    inner = [_BATCH_NORM[kind](depthwise.out_channels), nn.ReLU()] if between else []
    return nn.Sequential(depthwise, *inner, pointwise).train(layer.training)


def calibrated(model: nn.Module, replaced: Mapping[str, nn.Sequential], x: np.ndarray) -> None:
    """Let new batch norms begin as they would leave a batch: their scale and shift take back what they normalise."""
    norms = [part for layer in replaced.values() for part in layer if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(_take_back) for norm in norms]
    try:
        with torch.no_grad():
            model.eval()(torch.from_numpy(np.array(x)))
    finally:
        for handle in handles:
            handle.remove()


def _take_back(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    channels = inputs[0].transpose(0, 1).flatten(1)
    mean, variance = channels.mean(1), channels.var(1, unbiased=False)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.bias.copy_(mean)
    norm.weight.copy_((variance + norm.eps).sqrt())
