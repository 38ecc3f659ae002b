"""Tucker-2: a k×k convolution as 1×1, k×k between fewer channels, 1×1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgepress_host.techniques.low_rank.evbmf import signal_rank
from edgepress_host.techniques.low_rank.matrices import multiples, rounded_up
from edgepress_host.techniques.low_rank.pieces import Layer, Piece, Ranks, pointwise, whole

_SPREAD = 48
"""Ranks of each mode that a budget compares: 48 × 48 are some thousand pairs."""


class Tucker:
    """W (out, in, k, k) ≈ core (r_out, r_in, k, k) between orthonormal bases of output and input channels.

    Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR
    2016. Bases start from the truncated higher-order SVD and improve by `iterations` of HOOI (De Lathauwer, De Moor,
    Vandewalle 2000). Ranks are (inputs, outputs); a mode of full rank gets no layer of its own.
    """

    def __init__(self, layer: Layer, *, iterations: int) -> None:
        assert not isinstance(layer, nn.Linear)
        self._layer = layer
        self._iterations = iterations
        self._tensor = layer.weight.detach().double().flatten(2)
        self._outer = _basis(self._tensor, mode=0)
        self._inner = _basis(self._tensor, mode=1)
        core = torch.einsum("oik,or,is->rsk", self._tensor, self._outer, self._inner)
        squares = core.square().sum(2).cumsum(0).cumsum(1)
        total = float(squares[-1, -1])
        self._held = squares / total if total > 0 else torch.ones_like(squares)

    def pieces(self, ranks: Ranks) -> list[Piece]:
        """Return up to three convolutions."""
        piece, (inputs, outputs) = whole(self._layer), ranks
        found = [piece._replace(inputs=inputs, outputs=outputs)]
        if inputs < piece.inputs:
            found.insert(0, pointwise(self._layer, piece.inputs, inputs))
        if outputs < piece.outputs:
            found.append(pointwise(self._layer, outputs, piece.outputs))
        return found

    def kept(self, ranks: Ranks) -> float:
        """Return the share that the truncated higher-order SVD holds; HOOI holds no less."""
        return float(self._held[ranks[1] - 1, ranks[0] - 1])

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """Project the kernel on the bases of these ranks."""
        outer, inner = self._bases(ranks)
        found = [torch.einsum("oik,or,is->rsk", self._tensor, outer, inner)]
        if ranks[0] < self._tensor.shape[1]:
            found.insert(0, inner.T)
        if ranks[1] < self._tensor.shape[0]:
            found.append(outer)
        return found

    def of_number(self, rank: int | tuple[int, int]) -> Ranks:
        """Return (inputs, outputs), at most the full ones."""
        inputs, outputs = (rank, rank) if isinstance(rank, int) else rank
        return min(inputs, self._tensor.shape[1]), min(outputs, self._tensor.shape[0])

    def of_energy(self, energy: float, round_to: int) -> list[Ranks]:
        """Return, for each rank of the inputs, the least one of the outputs that will do."""
        found: list[Ranks] = []
        outputs = multiples(self._tensor.shape[0], round_to)
        held = self._held[torch.tensor(outputs) - 1]
        for inputs in multiples(self._tensor.shape[1], round_to):
            enough = (held[:, inputs - 1] >= energy - 1e-6).nonzero()
            if len(enough):
                found.append((inputs, outputs[int(enough[0])]))
        return found

    def of_noise(self, round_to: int) -> Ranks | None:
        """Return the ranks of the signal in the two unfoldings, as Kim et al. choose them."""
        found = []
        for mode in (1, 0):
            unfolded = self._tensor.transpose(0, mode).flatten(1)
            values = torch.linalg.svdvals(unfolded)
            found.append(signal_rank(values.numpy(), *unfolded.shape))
        if not all(found):
            return None
        outputs, inputs = self._tensor.shape[:2]
        return rounded_up(found[0], inputs, round_to), rounded_up(found[1], outputs, round_to)

    def spread(self, round_to: int) -> list[Ranks]:
        """Return pairs of multiples, thinned out."""
        outputs, inputs = self._tensor.shape[:2]
        return [
            (i, o)
            for i in multiples(inputs, round_to, most=_SPREAD)
            for o in multiples(outputs, round_to, most=_SPREAD)
        ]

    def _bases(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """Return bases (out, r_out) and (in, r_in), each improved in turn with the other one held."""
        inner, outer = self._inner[:, : ranks[0]], self._outer[:, : ranks[1]]
        if ranks[0] == len(inner):
            inner = torch.eye(len(inner), dtype=inner.dtype)
        if ranks[1] == len(outer):
            outer = torch.eye(len(outer), dtype=outer.dtype)
        if ranks[0] == len(inner) or ranks[1] == len(outer):
            # With one basis whole, the other's is the best already.
            return outer, inner
        for _ in range(self._iterations):
            outer = _basis(torch.einsum("oik,is->osk", self._tensor, inner), mode=0)[:, : ranks[1]]
            inner = _basis(torch.einsum("oik,or->rik", self._tensor, outer), mode=1)[:, : ranks[0]]
        return outer, inner


def _basis(tensor: Tensor, *, mode: int) -> Tensor:
    """Left singular vectors of an unfolding, the greatest first, from its Gram matrix."""
    unfolded = tensor.transpose(0, mode).flatten(1)
    vectors: Tensor = torch.linalg.eigh(unfolded @ unfolded.T).eigenvectors
    return vectors.flip(1)
