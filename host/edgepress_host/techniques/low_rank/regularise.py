"""Training that draws the energy of weights together, so that fewer ranks hold it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgepress_host.press.training import Loss, Step
from edgepress_host.techniques.low_rank.pieces import Layer, Method

_REFRESH = 8
"""Steps of training between two decompositions: singular vectors turn slowly."""


class TraceNorm:
    """`strength` times the mean over layers of ‖W‖* / (√k ‖W‖F), between 1 / √k for rank one and 1 for a flat spectrum.

    The trace norm of each layer's matrix, divided by its Frobenius norm: a convolution before a batch normalisation
    could make the trace norm alone small by mere scaling. The subgradient U Vᵀ is refreshed every few steps, as in
    Trained Rank Pruning (Xu et al., IJCAI 2020).
    """

    def __init__(self, layers: Sequence[tuple[Layer, Sequence[Method]]], strength: float) -> None:
        self._matrices = [(layer, lay) for layer, methods in layers for lay in _layouts(methods)]
        self._strength = strength
        self._polar: list[Tensor] = []

    def added_to(self, loss: Loss) -> Loss:
        """Return the loss with the penalty."""

        def both(outputs: object, step: Step) -> Tensor:
            return loss(outputs, step) + self._penalty(step.number)

        return both

    def _penalty(self, number: int) -> Tensor:
        if number % _REFRESH == 0 or not self._polar:
            self._polar = [_polar_factor(lay(layer.weight.detach())) for layer, lay in self._matrices]
        terms = []
        for (layer, lay), polar in zip(self._matrices, self._polar, strict=True):
            matrix = lay(layer.weight)
            norm = matrix.norm().clamp_min(1e-12)
            terms.append((polar * matrix).sum() / norm / min(matrix.shape) ** 0.5)
        return self._strength * torch.stack(terms).mean()


def _layouts(methods: Sequence[Method]) -> list[Callable[[Tensor], Tensor]]:
    """Matrices whose ranks the methods go by: the unfoldings of both channel modes for Tucker and CP."""
    if "tucker" in methods or "cp" in methods:
        return [lambda weight: weight.flatten(1), lambda weight: weight.transpose(0, 1).flatten(1)]
    if "spatial" in methods:
        return [lambda weight: weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)]
    return [lambda weight: weight.flatten(1)]


def _polar_factor(matrix: Tensor) -> Tensor:
    """U Vᵀ, the subgradient of the trace norm, by way of the smaller Gram matrix."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values, vectors = torch.linalg.eigh((wide @ wide.T).double())
    kept = values > 1e-10 * values[-1].clamp_min(1e-30)
    inverse: Tensor = (vectors[:, kept] / values[kept].sqrt()) @ vectors[:, kept].T
    polar: Tensor = inverse.to(matrix.dtype) @ wide
    return polar if wide is matrix else polar.T
