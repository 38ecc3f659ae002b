"""Factors from a singular value decomposition: of a layer's matrix, or of a kernel's rows against its columns."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from edgepress_host.techniques.low_rank.evbmf import signal_rank
from edgepress_host.techniques.low_rank.pieces import Layer, Piece, Ranks, along, pointwise, whole


class Decomposition(Protocol):
    """A layer taken apart by one method; what is costly is computed once."""

    def pieces(self, ranks: Ranks) -> list[Piece]:
        """Return the thin layers of these ranks."""

    def kept(self, ranks: Ranks) -> float:
        """Return the share of the squared norm of the weights that factors of these ranks hold."""

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """Return the weights of the pieces."""

    def of_number(self, rank: int | tuple[int, int]) -> Ranks:
        """Return these ranks, or the full ones where they are less."""

    def of_energy(self, energy: float, round_to: int) -> list[Ranks]:
        """Return the least ranks that keep `energy`; of several modes, all that are least in one of them."""

    def spread(self, round_to: int) -> list[Ranks]:
        """Return ranks from small to full that are worth a comparison."""


@runtime_checkable
class OfMatrices(Decomposition, Protocol):
    """Such a method whose ranks are those of matrices, in which signal can be told from noise."""

    def of_noise(self, round_to: int) -> Ranks | None:
        """Return the ranks that EVBMF finds above the noise, rounded up; None where it finds none."""


def multiples(full: int, round_to: int, *, most: int | None = None) -> list[int]:
    """Ranks that are multiples of `round_to`, up to and with the full one; thinned out evenly to `most`.

    >>> multiples(10, 4)
    [4, 8, 10]
    """
    found = [*range(round_to, full, round_to), full]
    if most is None or len(found) <= most:
        return found
    return sorted({found[round(place * (len(found) - 1) / (most - 1))] for place in range(most)})


def rounded_up(rank: int, full: int, round_to: int) -> int:
    """Return the next multiple, or the full rank where that is less.

    >>> rounded_up(9, 20, 8), rounded_up(9, 10, 8)
    (16, 10)
    """
    return min(-(-rank // round_to) * round_to, full)


class Svd:
    """W (out, in) ≈ (U √S) (√S Vᵀ), truncated: the best approximation of that rank (Eckart, Young 1936)."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._matrix = self._laid_out(layer.weight.detach())
        self._left, self._values, self._right = torch.linalg.svd(self._matrix, full_matrices=False)
        squares = self._values.double().square()
        total = float(squares.sum())
        self._held = squares.cumsum(0) / total if total > 0 else torch.ones_like(squares)

    def pieces(self, ranks: Ranks) -> list[Piece]:
        """Return two layers: the first strides and pads as the layer does."""
        piece = whole(self._layer)
        return [piece._replace(outputs=ranks[0]), pointwise(self._layer, ranks[0], piece.outputs)]

    def kept(self, ranks: Ranks) -> float:
        """Return the share of the squared singular values."""
        return float(self._held[ranks[0] - 1])

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """Share each singular value evenly between the two."""
        root = self._values[: ranks[0]].sqrt()
        return [root[:, None] * self._right[: ranks[0]], self._left[:, : ranks[0]] * root]

    def of_number(self, rank: int | tuple[int, int]) -> Ranks:
        """Return the rank, at most the full one; of two, as Tucker's modes have, a matrix has the lesser."""
        return (min(rank if isinstance(rank, int) else min(rank), len(self._values)),)

    def of_energy(self, energy: float, round_to: int) -> list[Ranks]:
        """Return the one least rank."""
        reach = int((self._held < energy - 1e-6).sum()) + 1
        return [(rounded_up(reach, len(self._values), round_to),)]

    def of_noise(self, round_to: int) -> Ranks | None:
        """Return the rank of the signal in the matrix."""
        rank = signal_rank(self._values.double().numpy(), *self._matrix.shape)
        return (rounded_up(rank, len(self._values), round_to),) if rank else None

    def spread(self, round_to: int) -> list[Ranks]:
        """Return every multiple."""
        return [(rank,) for rank in multiples(len(self._values), round_to)]

    def _laid_out(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)


class Spatial(Svd):
    """A k×k kernel as k×1, then 1×k: the SVD of (in·rows) × (out·columns).

    Scheme 2 of Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions",
    BMVC 2014; in the closed form of Tai et al., "Convolutional Neural Networks with Low-rank Regularization", 2016.
    """

    def pieces(self, ranks: Ranks) -> list[Piece]:
        """Return the vertical, then the horizontal convolution."""
        piece = whole(self._layer)
        return [along(piece._replace(outputs=ranks[0]), (0,)), along(piece._replace(inputs=ranks[0]), (1,))]

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """Share each singular value evenly between the two."""
        assert isinstance(self._layer, nn.Conv2d)
        outputs, inputs, rows, columns = self._layer.weight.shape
        root = self._values[: ranks[0]].sqrt()
        vertical = (self._left[:, : ranks[0]] * root).T.reshape(ranks[0], inputs, rows, 1)
        horizontal = (root[:, None] * self._right[: ranks[0]]).reshape(ranks[0], outputs, 1, columns)
        return [vertical, horizontal.transpose(0, 1)]

    def _laid_out(self, weight: Tensor) -> Tensor:
        outputs, inputs, rows, columns = weight.shape
        return weight.permute(1, 2, 0, 3).reshape(inputs * rows, outputs * columns)
