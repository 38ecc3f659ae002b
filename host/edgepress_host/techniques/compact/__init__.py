"""Compact convolutions: k×k over all channels becomes k×k per channel and 1x1 over them, taught by the original."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.strict import changed
from edgepress_host.press.structure import replace_layer, sharers
from edgepress_host.press.trained import Trained
from edgepress_host.technique import Stage, StepFailed, Trait, Workbench, check_patterns, for_layer
from edgepress_host.techniques.compact.separable import Conv, calibrated, costs, separable
from edgepress_host.techniques.distill import Distill, Share, Weight
from edgepress_host.techniques.distill.features import look

Multiplier = Annotated[int, msgspec.Meta(ge=1, le=8)]
_CALIBRATION_SAMPLES = 64
_PLAIN = (nn.Conv1d, nn.Conv2d)


class CompactLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    multiplier: Multiplier | None = None
    skip: bool | None = None


class Compact(Trained, frozen=True):
    """Replace convolutions by depthwise separable ones (Howard et al. 2017), then distil the original into them.

    The new layers begin with the best approximation of the old ones, with `multiplier` depthwise kernels per input
    channel; `between` puts batch norm and ReLU between the two, as MobileNets have. Training is as in `distill`, with
    `alpha`, `temperature`, and a `hint` for each layer that was replaced, to come near to what the old one gave.
    Layers of fewer than `min_channels` on a side, and those whose multiply-accumulates would not go down, stay as they
    are, and are named.
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train", "calibrate")
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"samples": 64},
        {"samples": 64, "multiplier": 2, "between": True, "hint": 1.0},
    )

    multiplier: Multiplier = 1
    between: bool = False
    min_channels: Annotated[int, msgspec.Meta(ge=1)] = 8
    alpha: Share = 0.9
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] = 4.0
    hint: Weight = 0.0
    skip: bool = False
    layers: dict[str, CompactLayer] = msgspec.field(default_factory=dict)
    types: dict[str, CompactLayer] = msgspec.field(default_factory=dict)
    epochs: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1

    def check(self) -> None:
        """Raise UsageError where nothing is left to learn from the original, or no time to learn."""
        super().check()
        for name in ("hint", "alpha", "temperature"):
            if name in changed(self) and not self.epochs:
                raise UsageError(f"{name}: expected epochs of 1 or more, in which the original teaches")
        if self.epochs:
            self._distill({}).check()

    def breaks(self) -> frozenset[Trait]:
        """Singular vectors are dense, and of values of their own."""
        return frozenset({"zeros", "shared", "grid"})

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a copy with separable convolutions, taught if `epochs` says so. Raises UsageError and StepFailed."""
        thin = copy.deepcopy(model).requires_grad_(True)
        held = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Conv1d | nn.Conv2d) and type(layer) in _PLAIN and math.prod(layer.kernel_size) > 1
        }
        check_patterns(self.layers, self.types, {name: type(layer).__name__ for name, layer in held.items()})
        replaced, left, shared = {}, [], sharers(model)
        for name, layer in held.items():
            own = for_layer(self, self.layers, self.types, name, type(layer).__name__)
            if own.skip:
                continue
            if reason := _veto(layer, own, shared.get(name, [])):
                left.append(f"{name} ({reason})")
                continue
            replaced[name] = separable(layer, own.multiplier, between=self.between)
            replace_layer(thin, name, replaced[name])
        if not replaced:
            reasons = f": {', '.join(left)}" if left else "; none of them is wider than 1x1, or all are skipped"
            raise StepFailed(f"no convolution became separable{reasons}")
        if left:
            bench.note(f"left as they are: {', '.join(left)}")
        if self.between:
            calibrated(thin, replaced, bench.calibration(_CALIBRATION_SAMPLES))
        if not self.epochs:
            return thin.eval()
        return self._distill(_taught_inside(thin, replaced, bench) if self.hint else {}).apply_module(thin, bench)

    def _distill(self, features: dict[str, str]) -> Distill:
        options = {name: getattr(self, name) for name in Trained.__struct_fields__}
        return Distill(**options, alpha=self.alpha, temperature=self.temperature, hint=self.hint, features=features)


def _taught_inside(thin: nn.Module, replaced: Iterable[str], bench: Workbench) -> dict[str, str]:
    """Pair the new layers with the original's of the same names, where it has them and they are not the output."""
    x = torch.from_numpy(bench.calibration(2).copy())
    inner = look(thin, x).features.keys() & look(bench.original(), x).features.keys()
    return {name: name for name in replaced if name in inner}


def _veto(layer: Conv, options: Compact, sharing: list[str]) -> str:
    """Say why a layer stays as it is; empty where it does not."""
    if sharing:
        return f"shares its weight with {', '.join(sharing)}"
    if layer.groups > 1:
        return f"has {layer.groups} groups already"
    if min(layer.in_channels, layer.out_channels) < options.min_channels:
        return f"{layer.in_channels} to {layer.out_channels} channels, min_channels is {options.min_channels}"
    before, after = costs(layer, options.multiplier)
    if after >= before:
        return f"{after:,} multiply-accumulates per place instead of {before:,}"
    return ""
