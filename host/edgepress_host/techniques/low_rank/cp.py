"""CP: a convolution as 1×1, depthwise k×1, depthwise 1×k, 1×1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgepress_host.techniques.low_rank.matrices import multiples
from edgepress_host.techniques.low_rank.pieces import Layer, Piece, Ranks, along, pointwise, whole

_SPREAD = 8
_ROUNDS = 60
_ENOUGH = 1e-6
"""A round that betters the fit by less than this share of the squared norm is the last one."""

_RIDGE = 1e-6
"""Share of the mean diagonal added to the normal equations: without it components grow against each other."""


class Cp:
    """W (out, in, k, k) ≈ a sum of `rank` outer products of four vectors, by alternating least squares.

    Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", ICLR 2015. No rank
    above `most` is tried: it would not save. Each rank's factors are found once.
    """

    def __init__(self, layer: Layer, *, most: int, seed: int) -> None:
        assert not isinstance(layer, nn.Linear)
        self._layer = layer
        self._most = max(1, most)
        self._seed = seed
        self._tensor = layer.weight.detach().double()
        self._total = float(self._tensor.square().sum())
        self._found: dict[int, tuple[list[Tensor], float]] = {}

    def pieces(self, ranks: Ranks) -> list[Piece]:
        """Return up to four convolutions; a kernel that is long along one axis needs one depthwise one."""
        piece, rank = whole(self._layer), ranks[0]
        depthwise = piece._replace(inputs=rank, outputs=rank, groups=rank)
        long = self._long(piece)
        middle = [depthwise] if len(long) < 2 else [along(depthwise, (axis,)) for axis in long]
        return [pointwise(self._layer, piece.inputs, rank), *middle, pointwise(self._layer, rank, piece.outputs)]

    def kept(self, ranks: Ranks) -> float:
        """Return the share of the squared norm that the sum holds."""
        return self._at(ranks[0])[1]

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """Return the vectors as kernels, each component's size shared evenly between them."""
        (outer, inner, *kernels), _ = self._at(ranks[0])
        piece, rank = whole(self._layer), ranks[0]
        long = self._long(piece)
        if len(long) < 2:
            product = kernels[0] if len(kernels) == 1 else torch.einsum("ir,jr->ijr", *kernels)
            return [inner.T, product.flatten(0, -2).T.reshape(rank, 1, *piece.kernel), outer]
        laid = [kernels[axis].T.reshape(rank, 1, *along(piece, (axis,)).kernel) for axis in long]
        return [inner.T, *laid, outer]

    def of_number(self, rank: int | tuple[int, int]) -> Ranks:
        """Return the rank, at most that of the tensor's largest sum."""
        assert isinstance(rank, int)
        return (min(rank, self._tensor.numel() // max(self._tensor.shape)),)

    def of_energy(self, energy: float, round_to: int) -> list[Ranks]:
        """Return the least rank that keeps the energy, by bisection; none where the largest does not."""
        found = multiples(self._most, round_to)
        if self.kept((found[-1],)) < energy - 1e-6:
            return []
        low, high = 0, len(found) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.kept((found[middle],)) >= energy - 1e-6 else (middle + 1, high)
        return [(found[low],)]

    def spread(self, round_to: int) -> list[Ranks]:
        """Return a few ranks up to the largest that saves: each costs an own approximation."""
        return [(rank,) for rank in multiples(self._most, round_to, most=_SPREAD)]

    @staticmethod
    def _long(piece: Piece) -> list[int]:
        return [axis for axis, length in enumerate(piece.kernel) if length > 1]

    def _at(self, rank: int) -> tuple[list[Tensor], float]:
        if rank not in self._found:
            chance = torch.Generator().manual_seed(self._seed)
            factors = alternating_least_squares(self._tensor, rank, chance)
            lost = float((self._tensor - composed(factors)).square().sum())
            self._found[rank] = factors, 1 - lost / self._total if self._total else 1.0
        return self._found[rank]


def alternating_least_squares(tensor: Tensor, rank: int, chance: torch.Generator) -> list[Tensor]:
    """Return a factor (length, rank) for each axis of a tensor, such that their composition is near to it.

    Start: leading left singular vectors of each unfolding, filled up with chance (Kolda, Bader 2009, section 3.4).
    """
    factors = [_start(tensor, axis, rank, chance) for axis in range(tensor.ndim)]
    total = float(tensor.square().sum())
    before = math.inf
    for _ in range(_ROUNDS):
        # The two channel axes are long: what is multiplied with one of them is short, and does for all the others.
        partial = torch.tensordot(tensor, factors[1], dims=([1], [0]))
        factors[0] = _solved(_projected(partial, factors, axis=0, contracted=1), factors, axis=0)
        partial = torch.tensordot(tensor, factors[0], dims=([0], [0]))
        for axis in range(1, tensor.ndim):
            target = _projected(partial, factors, axis=axis, contracted=0)
            factors[axis] = _solved(target, factors, axis=axis)
        norm = torch.stack([factor.T @ factor for factor in factors]).prod(0).sum()
        lost = total - 2 * float((target * factors[-1]).sum()) + float(norm)
        factors = balanced(factors)
        if before - lost < _ENOUGH * total:
            break
        before = lost
    return factors


def composed(factors: list[Tensor]) -> Tensor:
    """Sum the outer products of the factors' columns."""
    rest = factors[1]
    for factor in factors[2:]:
        rest = (rest[:, None] * factor).flatten(0, 1)
    return (factors[0] @ rest.T).reshape([len(factor) for factor in factors])


def balanced(factors: list[Tensor]) -> list[Tensor]:
    """Share each component's size evenly between its vectors."""
    sizes = torch.stack([factor.norm(dim=0) for factor in factors]).clamp_min(1e-30)
    mean = sizes.log().mean(0).exp()
    return [factor / size * mean for factor, size in zip(factors, sizes, strict=True)]


def _start(tensor: Tensor, axis: int, rank: int, chance: torch.Generator) -> Tensor:
    unfolded = tensor.transpose(0, axis).flatten(1)
    leading = torch.linalg.eigh(unfolded @ unfolded.T).eigenvectors.flip(1)[:, :rank]
    missing = rank - leading.shape[1]
    filled = torch.randn(len(unfolded), missing, generator=chance, dtype=tensor.dtype) / math.sqrt(len(unfolded))
    return torch.cat([leading, filled], dim=1)


def _solved(target: Tensor, factors: list[Tensor], *, axis: int) -> Tensor:
    """Return the factor of an axis that fits best, given the others: the normal equations."""
    others = [factor for other, factor in enumerate(factors) if other != axis]
    gram = torch.stack([other.T @ other for other in others]).prod(0)
    gram.diagonal().add_(_RIDGE * float(gram.diagonal().mean()) + 1e-30)
    solved: Tensor = torch.linalg.solve(gram, target.T).T
    return solved


def _projected(partial: Tensor, factors: list[Tensor], *, axis: int, contracted: int) -> Tensor:
    """Multiply with the factors of all other axes, column by column: (length of `axis`, rank).

    `partial` is the tensor multiplied with the factor of the axis `contracted`: (…, rank) over the other axes.
    """
    left = [other for other in range(len(factors)) if other != contracted]
    for other in reversed(left):
        if other != axis:
            place = left.index(other)
            shape = [1] * (partial.ndim - 1) + [partial.shape[-1]]
            shape[place] = len(factors[other])
            partial = (partial * factors[other].reshape(shape)).sum(place, keepdim=True)
    return partial.reshape(-1, partial.shape[-1])
