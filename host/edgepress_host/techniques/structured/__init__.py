"""Structured matrices: dense layers become block-circulant, with one value where there were `block`."""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar

import msgspec
from torch import nn

from edgepress_host.press.structure import replace_layer, sharers
from edgepress_host.press.trained import Taught
from edgepress_host.technique import Stage, StepFailed, Trait, Workbench, check_patterns, for_layer
from edgepress_host.techniques.structured.circulant import circulant

Block = Annotated[int, msgspec.Meta(ge=2, le=1024)]


class StructuredLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    block: Block | None = None
    skip: bool | None = None


class Structured(Taught, frozen=True):
    """Replace dense layers by block-circulant ones (CirCNN, Ding et al. 2017), from the nearest such matrix on.

    File, memory and parameters of a layer shrink by `block`. Its multiply-accumulates stay as many, so that only large
    layers run faster, whose weights now fit a cache (1024×1024 with blocks of 8: two thirds of the time in ONNX Runtime
    and TFLite alike); small ones run slower. Fine-tuning goes by the labels, or with `teacher` by the softened answers
    of the original as well.
    A layer that is narrower than a block, or shares its weight with another, stays as it is, and is named.
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train",)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"block": 4}, {"block": 8, "epochs": 1, "samples": 64})

    block: Block = 8
    skip: bool = False
    layers: dict[str, StructuredLayer] = msgspec.field(default_factory=dict)
    types: dict[str, StructuredLayer] = msgspec.field(default_factory=dict)

    def breaks(self) -> frozenset[Trait]:
        """Mean values over diagonals are no longer the ones that were pruned, shared or rounded."""
        return frozenset({"zeros", "shared", "grid"})

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a copy with block-circulant layers, fine-tuned if `epochs` says so. Raises UsageError, StepFailed."""
        thin = copy.deepcopy(model).requires_grad_(True)
        held = _replaceable(model)
        check_patterns(self.layers, self.types, {name: type(layer).__name__ for name, layer in held.items()})
        replaced, left, shared = False, [], sharers(model)
        for name, layer in held.items():
            own = for_layer(self, self.layers, self.types, name, type(layer).__name__)
            if own.skip:
                continue
            if name in shared:
                left.append(f"{name} (shares its weight with {', '.join(shared[name])})")
                continue
            if min(layer.in_features, layer.out_features) < own.block:
                left.append(
                    f"{name} ({layer.in_features} to {layer.out_features}, narrower than a block of {own.block})"
                )
                continue
            replace_layer(thin, name, circulant(layer, own.block))
            replaced = True
            _keep_from_fused_kernels(thin, name)
        if not replaced:
            hint = "; give a smaller block or other layers"
            reason = f": {', '.join(left)}{hint}" if left else "; there is none, or all are skipped"
            raise StepFailed(f"no dense layer became block-circulant{reason}")
        if left:
            bench.note(f"left as they are: {', '.join(left)}")
        if not self.epochs:
            return thin.eval()
        return self.train(thin, bench, self.lesson(bench))


def _replaceable(model: nn.Module) -> dict[str, nn.Linear]:
    """Dense layers that are called, not those whose weights a layer above reads itself."""
    owned = {
        f"{name}.{child}" if name else child
        for name, layer in model.named_modules()
        if isinstance(layer, nn.MultiheadAttention)
        for child, _ in layer.named_children()
    }
    return {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear and name not in owned}


def _keep_from_fused_kernels(model: nn.Module, name: str) -> None:
    """Let a Transformer's layer call its dense layers: its fused kernel reads their weights as matrices."""
    above = model.get_submodule(name.rpartition(".")[0])
    if isinstance(above, nn.TransformerEncoderLayer):
        above.activation_relu_or_gelu = 0
