"""Block-circulant dense layers: a matrix of b×b blocks, each of which one vector of b values stands for.

Ding et al. 2017 (CirCNN), section 3.1. Their fast Fourier transform is slow in ONNX Runtime and absent from TFLite; a
circulant block times a vector is a circular correlation as well, so that the whole layer is one convolution over the
input wrapped around, whose kernels are the vectors. The file and the memory hold the vectors alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepress_host.press.structure import buildable


@buildable
class CirculantLinear(nn.Module):
    """A dense layer (…, in) → (…, out), W[i·b + r, j·b + c] = weight[i, j, 0, (c - r) mod b] with blocks of b.

    Where b does not divide a width, the last block reaches over the edge, and what lies beyond is not used.
    """

    def __init__(self, in_features: int, out_features: int, block: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.block = in_features, out_features, block
        self.weight = nn.Parameter(torch.empty(-(-out_features // block), -(-in_features // block), 1, block))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with random weights, as dense layers do."""
        bound = self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Correlate: y[i·b + r] = Σ_jk weight[i, j, 0, k] · x[j·b + (r + k) mod b] + bias[i·b + r]."""
        blocks = self.weight.shape[1]
        rows = x.reshape(-1, self.in_features)
        if beyond := blocks * self.block - self.in_features:
            rows = functional.pad(rows, (0, beyond))
        # 2-D convolutions, of which one direction has length one, ran faster than 1-D ones in both runtimes.
        rows = rows.reshape(-1, blocks, 1, self.block)
        y = functional.conv2d(torch.cat((rows, rows[..., :-1]), -1), self.weight).flatten(1)
        if y.shape[1] > self.out_features:
            y = y[:, : self.out_features]
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Say what the layer is."""
        return f"in_features={self.in_features}, out_features={self.out_features}, block={self.block}"


def circulant(layer: nn.Linear, block: int) -> CirculantLinear:
    """Return the block-circulant layer nearest to a dense one: each value is the mean over its wrapped diagonal."""
    made = CirculantLinear(layer.in_features, layer.out_features, block, bias=layer.bias is not None)
    rows, columns = made.weight.shape[:2]
    place = (torch.arange(columns * block) - torch.arange(rows * block)[:, None]) % block
    with torch.no_grad():
        sums, counts = (
            _by_diagonal(values, place, made.weight.shape) for values in (layer.weight, torch.ones_like(layer.weight))
        )
        # A diagonal that lies beyond the edge altogether belongs to no weight.
        made.weight.copy_(sums / counts.clamp(min=1))
        if made.bias is not None:
            made.bias.copy_(layer.bias)
    return made.train(layer.training)


def dense(layer: CirculantLinear) -> Tensor:
    """Return the dense weight (out, in) that the layer stands for."""
    rows, columns, _, block = layer.weight.shape
    place = (torch.arange(block) - torch.arange(block)[:, None]) % block
    whole = layer.weight[:, :, 0][:, :, place].movedim(2, 1).reshape(rows * block, columns * block)
    return whole[: layer.out_features, : layer.in_features]


def _by_diagonal(values: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
    """Sum a matrix (out, in) over the wrapped diagonals of its blocks; shape (rows, columns, 1, block)."""
    rows, columns, _, block = shape
    out, in_ = values.shape
    across = torch.arange(columns * block) // block
    down = torch.arange(rows * block)[:, None] // block
    numbers = (down * columns + across) * block + place
    sums = torch.zeros(rows * columns * block, dtype=torch.float64)
    sums.index_add_(0, numbers[:out, :in_].flatten(), values.double().flatten())
    return sums.reshape(shape)
