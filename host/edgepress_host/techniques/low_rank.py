"""Low rank: a dense or 1x1 layer becomes two thinner ones, from its singular value decomposition."""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import Tensor, nn

from edgepress_host.press.structure import replace_layer
from edgepress_host.press.trained import Trained
from edgepress_host.press.training import supervised
from edgepress_host.technique import Stage, Workbench, check_patterns, for_layer


class LowRankLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    energy: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    rank: Annotated[int, msgspec.Meta(ge=1)] | None = None
    skip: bool | None = None


class LowRank(Trained, frozen=True):
    """Keep the singular values that hold `energy` of the sum of squares, or exactly `rank` of them.

    W (out, in) ≈ (U √S) (√S Vᵀ), truncated: the best approximation of that rank (Eckart, Young 1936). A layer where
    that would not save weights stays as it is, and is named.
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train",)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"energy": 0.5},
        {"rank": 2},
        {"rank": 2, "epochs": 1, "samples": 64},
    )

    energy: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    rank: Annotated[int, msgspec.Meta(ge=1)] | None = None
    skip: bool = False
    layers: dict[str, LowRankLayer] = msgspec.field(default_factory=dict)
    types: dict[str, LowRankLayer] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        """Raise UsageError unless exactly one of energy and rank is given."""
        if (self.energy is None) == (self.rank is None):
            raise UsageError("energy: expected either energy (0 to 1) or rank (a number)")

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a copy with thinner layers, fine-tuned if `epochs` says so."""
        thin = copy.deepcopy(model).requires_grad_(True)
        held = {name: layer for name, layer in model.named_modules() if factorable(layer)}
        check_patterns(self.layers, self.types, {name: type(layer).__name__ for name, layer in held.items()})
        kept = []
        for name, layer in held.items():
            own = for_layer(self, self.layers, self.types, name, type(layer).__name__)
            if own.energy != self.energy and own.rank == self.rank:
                # An energy of the layer's own goes before a rank that is meant for all.
                own = msgspec.structs.replace(own, rank=None)
            factors = None if own.skip else factorize(layer, _rank(layer, own))
            if factors is None:
                kept.append(name)
            else:
                replace_layer(thin, name, factors)
        if kept:
            bench.note(f"left as they are, since it would not save: {', '.join(kept)}")
        if len(kept) < len(held) and self.epochs:
            self.train(thin, bench, supervised)
        return thin.eval()


def factorable(layer: nn.Module) -> bool:
    """Tell dense layers and ungrouped 1x1 convolutions from the rest."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)


def factorize(layer: nn.Module, rank: int) -> nn.Sequential | None:
    """Two layers of the given rank in place of one; None where they would hold as many weights or more."""
    matrix = _matrix(layer)
    rows, columns = matrix.shape
    if rank * (rows + columns) >= rows * columns:
        return None
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    first, second = _pair(layer, rank)
    with torch.no_grad():
        first.weight.copy_((root[:, None] * right[:rank]).reshape(first.weight.shape))
        second.weight.copy_((left[:, :rank] * root).reshape(second.weight.shape))
        if second.bias is not None:
            assert isinstance(layer.bias, Tensor)
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).train(layer.training)


def _rank(layer: nn.Module, options: LowRank) -> int:
    """Return how many singular values to keep."""
    values = torch.linalg.svdvals(_matrix(layer))
    if options.rank is not None:
        return min(options.rank, len(values))
    assert options.energy is not None
    share = values.square().cumsum(0) / values.square().sum()
    return int((share < options.energy - 1e-6).sum()) + 1


def _matrix(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach().flatten(1)


def _pair(layer: nn.Module, rank: int) -> tuple[nn.Linear, nn.Linear] | tuple[nn.Conv2d, nn.Conv2d]:
    if isinstance(layer, nn.Linear):
        return (
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
        )
    assert isinstance(layer, nn.Conv2d)
    stride = (layer.stride[0], layer.stride[1])
    return (
        nn.Conv2d(layer.in_channels, rank, 1, stride=stride, padding=layer.padding, bias=False),  # type: ignore[arg-type]
        nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None),
    )
