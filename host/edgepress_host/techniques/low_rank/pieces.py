"""The thin layers that stand for one layer: their shapes, what they cost, and the modules built from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)
Method = Literal["svd", "tucker", "cp", "spatial"]
Ranks = tuple[int, ...]
Shapes = Sequence[tuple[int, ...]]


class Piece(NamedTuple):
    """A dense layer (no kernel) or a convolution; `padding` may be torch's "same" or "valid"."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def weights(self) -> int:
        """How many weights it holds, its bias apart."""
        return self.inputs // self.groups * self.outputs * math.prod(self.kernel)


class Cost(msgspec.Struct, frozen=True):
    """Multiply-accumulates of one sample, and weights held."""

    macs: int
    weights: int


def whole(layer: Layer) -> Piece:
    """Return a layer as the one piece that it is."""
    if isinstance(layer, nn.Linear):
        return Piece(layer.in_features, layer.out_features)
    return Piece(
        layer.in_channels,
        layer.out_channels,
        tuple(layer.kernel_size),
        tuple(layer.stride),
        layer.padding if isinstance(layer.padding, str) else tuple(layer.padding),
        tuple(layer.dilation),
        layer.groups,
    )


def pointwise(layer: Layer, inputs: int, outputs: int) -> Piece:
    """Return a layer without reach of its own: dense, or a convolution by 1."""
    reach = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
    return Piece(inputs, outputs, (1,) * reach, (1,) * reach, (0,) * reach, (1,) * reach)


def along(piece: Piece, axes: Sequence[int]) -> Piece:
    """Return a piece that reaches, strides and pads along some of its axes only."""

    def chosen(values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(value if axis in axes else other for axis, value in enumerate(values))

    return piece._replace(
        kernel=chosen(piece.kernel, 1),
        stride=chosen(piece.stride, 1),
        padding=piece.padding if isinstance(piece.padding, str) else chosen(piece.padding, 0),
        dilation=chosen(piece.dilation, 1),
    )


def cost(pieces: Sequence[Piece], shapes: Shapes) -> Cost:
    """Sum up what the pieces cost, one after the other, on inputs of the given shapes (B, …)."""
    macs = sum(_macs(pieces, shape) for shape in shapes)
    return Cost(macs, sum(piece.weights for piece in pieces))


def _macs(pieces: Sequence[Piece], shape: tuple[int, ...]) -> int:
    axes = len(pieces[0].kernel)
    if axes == 0:
        return math.prod(shape[:-1]) * sum(piece.weights for piece in pieces)
    lead, size, total = math.prod(shape[: -axes - 1]), shape[-axes:], 0
    for piece in pieces:
        size = tuple(_reached(piece, axis, length) for axis, length in enumerate(size))
        total += piece.weights * math.prod(size)
    return lead * total


def _reached(piece: Piece, axis: int, length: int) -> int:
    """Return how long the output is along an axis."""
    if piece.padding == "same":
        return length
    padding = 0 if isinstance(piece.padding, str) else piece.padding[axis]
    return (length + 2 * padding - piece.dilation[axis] * (piece.kernel[axis] - 1) - 1) // piece.stride[axis] + 1


def built(layer: Layer, pieces: Sequence[Piece], weights: Sequence[Tensor]) -> nn.Sequential:
    """Build the pieces with their weights; the last one has the layer's bias."""
    last = len(pieces) - 1
    made = [
        _module(layer, piece, bias=number == last and layer.bias is not None) for number, piece in enumerate(pieces)
    ]
    with torch.no_grad():
        for module, weight in zip(made, weights, strict=True):
            module.weight.copy_(weight.reshape(module.weight.shape))
        if layer.bias is not None:
            made[last].bias.copy_(layer.bias)  # type: ignore[union-attr]
    return nn.Sequential(*made).train(layer.training)


def _module(layer: Layer, piece: Piece, *, bias: bool) -> Layer:
    if isinstance(layer, nn.Linear):
        return nn.Linear(piece.inputs, piece.outputs, bias=bias)
    return type(layer)(
        piece.inputs,
        piece.outputs,
        piece.kernel,  # type: ignore[arg-type]
        stride=piece.stride,  # type: ignore[arg-type]
        padding=piece.padding,  # type: ignore[arg-type]
        dilation=piece.dilation,  # type: ignore[arg-type]
        groups=piece.groups,
        bias=bias,
        padding_mode=layer.padding_mode if isinstance(piece.padding, str) or any(piece.padding) else "zeros",
    )
