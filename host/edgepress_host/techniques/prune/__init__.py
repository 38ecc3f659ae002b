"""Pruning: single weights, channels, attention heads, hidden units or blocks; at once, in rounds, or in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.sensitivity import named
from edgepress_host.press.strict import changed, fields_of
from edgepress_host.press.trained import Taught
from edgepress_host.technique import Stage, StepFailed, Trait, Workbench, check_patterns, for_layer
from edgepress_host.techniques.prune import rules
from edgepress_host.techniques.prune.attention import attentions
from edgepress_host.techniques.prune.blocks import BlockCut
from edgepress_host.techniques.prune.channels import ChannelCut, output_layers
from edgepress_host.techniques.prune.gradients import SAMPLES, backward
from edgepress_host.techniques.prune.gradual import Gradual, Ramp
from edgepress_host.techniques.prune.plan import PRUNABLE, RECURRENT, Wanted
from edgepress_host.techniques.prune.units import Heads, UnitCut, Units, hidden_parts
from edgepress_host.techniques.prune.weights import SPARSE, Rule, WeightCut, unknown

__all__ = ["Prune", "PruneLayer", "output_layers"]

Importance = Literal["l1", "l2", "bn_scale", "lamp", "fpgm", "taylor"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Cut = Callable[[float], None]
"""Prunes a model in place, up to a share of the whole way."""

_RATIO = 0.5


class PruneLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own; with kinds heads and block, the layers are attentions and blocks."""

    ratio: float | None = None
    threshold: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    skip: bool | None = None


class Prune(Taught, frozen=True):
    """Take away what matters least, then fine-tune.

    `kind` says what goes. magnitude: single weights become zero, by `ratio` (0.5), at or below `threshold`, or all but
    N of every M neighbours by `pattern` "N:M"; recurrent layers and attention take part. channel: filters and neurons,
    along the dependency graph (Fang et al., DepGraph, CVPR 2023), to widths that are multiples of `round_to`; the
    layers that make the model's output keep theirs, and so do those that attention reads. heads: attention heads.
    hidden: units between the two dense layers of feed-forward parts, in multiples of `round_to`. block: whole blocks
    that give back the shape of their input, those that the validate split misses least, `count` of them or as long as
    the metric drops by no more than `max_drop`.

    `importance` ranks: l1, l2, bn_scale (Liu et al., ICCV 2017), lamp (Lee et al., ICLR 2021; compares layers, for
    scope global), fpgm (He et al., CVPR 2019), taylor (Molchanov et al., CVPR 2019, heads: Michel et al., NeurIPS
    2019; on the first samples of train). `scope` ranks within each layer, or over the model.

    `schedule` says when. one_shot: at once, then `epochs` of fine-tuning. iterative: in `iterations` rounds of
    pruning and `epochs` each (Han et al., NeurIPS 2015), every round the same part of what is left. constant, linear,
    polynomial (Zhu, Gupta 2017): zeros come while the model trains, from `initial_sparsity` at the share `begin` of
    training to the ratio at `end`, every `frequency` steps, with `power`. A weight that is
    zero stays zero. No mask is left in the model.

    `teacher` fine-tunes with soft targets of the original beside the labels, with `temperature` and `alpha`.
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train", "validate")
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"ratio": 0.5},
        {"ratio": 0.5, "importance": "bn_scale", "scope": "global"},
        {"ratio": 0.5, "epochs": 1, "samples": 64},
        {"kind": "magnitude", "ratio": 0.8, "epochs": 1, "samples": 64},
        {"kind": "magnitude", "ratio": 0.8, "scope": "global"},
        {"kind": "magnitude", "ratio": 0.8, "schedule": "polynomial", "epochs": 2, "samples": 128, "teacher": True},
        {"kind": "block", "count": 1},
    )

    kind: Literal["channel", "magnitude", "heads", "hidden", "block"] = "channel"
    ratio: float | None = None
    threshold: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    pattern: str | None = None
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_drop: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None
    importance: Importance = "l2"
    scope: Literal["layer", "global"] = "layer"
    round_to: Annotated[int, msgspec.Meta(ge=1)] = 4
    schedule: Literal["one_shot", "iterative", "constant", "linear", "polynomial"] = "one_shot"
    iterations: Annotated[int, msgspec.Meta(ge=2, le=100)] = 3
    initial_sparsity: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    begin: Share = 0.0
    end: Share = 0.75
    frequency: Annotated[int, msgspec.Meta(ge=1)] = 100
    power: Annotated[float, msgspec.Meta(gt=0, le=10)] = 3.0
    skip: bool = False
    layers: dict[str, PruneLayer] = msgspec.field(default_factory=dict)
    types: dict[str, PruneLayer] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""
        overrides = [override.ratio for override in (*self.layers.values(), *self.types.values())]
        super().check()
        for ratio in (self.ratio, *overrides):
            if ratio is not None and not 0 <= ratio < 1:
                raise UsageError(f"ratio: expected at least 0 and less than 1, got {ratio}")
        rules.check(rules.Chosen(fields_of(self), changed(self)))

    def makes(self) -> frozenset[Trait]:
        """Single zeros, where single weights go; with a pattern, so many of every few neighbours."""
        if self.kind != "magnitude":
            return frozenset()
        return frozenset({"zeros"}) if self.pattern is None else frozenset({"zeros", "pattern"})

    def breaks(self) -> frozenset[Trait]:
        """Training moves shared values; a module whose weights are on a grid has no layers that could lose any.

        Where inputs of layers go, others become neighbours, and no pattern holds for them.
        """
        broken: set[Trait] = {"grid", "shared"} if self.epochs else {"grid"}
        if self.kind in ("channel", "heads", "hidden"):
            broken.add("pattern")
        return frozenset(broken)

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a pruned and fine-tuned copy. Raises StepFailed where the model has nothing that can go."""
        pruned = copy.deepcopy(model).requires_grad_(True)
        cut = self._cut(pruned, bench)
        if isinstance(cut, WeightCut) and self.schedule in rules.DURING:
            self.train(pruned, bench, self.lesson(bench), after_step=Gradual(cut, self._ramp()))
            cut(1.0)
            return pruned.eval()
        rounds = self._rounds()
        for number in range(1, rounds + 1):
            bench.say(f"pruning ({self.kind}, round {number} of {rounds})" if rounds > 1 else f"pruning ({self.kind})")
            cut(number / rounds)
            if self.epochs:
                self.train(pruned, bench, self.lesson(bench))
        return pruned.eval()

    def _cut(self, model: nn.Module, bench: Workbench) -> Cut:
        match self.kind:
            case "magnitude":
                if others := [f"{name} ({type(layer).__name__})" for name, layer in unknown(model).items()]:
                    bench.note(f"left as they are, of kinds that keep all weights: {', '.join(others)}")
                layers = named(model, SPARSE)
                return WeightCut(layers, self._wanted(layers), self._rule(), bench.note)
            case "channel":
                return self._channels(model, bench)
            case "block":
                return BlockCut(model, self._wanted, bench, count=self.count, max_drop=self.max_drop)
            case "heads":
                return self._units(model, {name: Heads(name) for name in attentions(model)}, bench)
            case "hidden":
                return self._units(model, hidden_parts(model), bench)

    def _channels(self, model: nn.Module, bench: Workbench) -> ChannelCut:
        return ChannelCut(
            model,
            self._wanted(named(model, (*PRUNABLE, *RECURRENT))),
            bench,
            importance=self.importance,
            ratio=_RATIO if self.ratio is None else self.ratio,
            over_model=self.scope == "global",
            round_to=self.round_to,
            rounds=self._rounds(),
        )

    def _units(self, model: nn.Module, parts: Mapping[str, Units], bench: Workbench) -> UnitCut:
        wanted = self._wanted({name: model.get_submodule(name) for name in parts})
        if not wanted:
            looked_for = {"heads": "attention", "hidden": "feed-forward part"}[self.kind]
            raise StepFailed(f"this model has no {looked_for} that is not skipped; take kind channel or magnitude")
        score = self.importance
        assert score in ("l1", "l2", "taylor")
        return UnitCut(
            model,
            parts,
            wanted,
            score=score,
            over_model=self.scope == "global",
            round_to=self.round_to if self.kind == "hidden" else 1,
            sample=torch.from_numpy(bench.calibration(4).copy()),
            backward=lambda one: backward(one, bench.split("train").first(SAMPLES)),
        )

    def _wanted(self, layers: Mapping[str, nn.Module]) -> dict[str, Wanted]:
        """Return what each layer is to lose, without those that are to lose nothing."""
        kinds = {name: type(layer).__name__ for name, layer in layers.items()}
        check_patterns(self.layers, self.types, kinds)
        found: dict[str, Wanted] = {}
        for name, kind in kinds.items():
            own = self._own_amount(name, kind)
            amount = self if own is None else own
            wish = Wanted(_RATIO if amount.ratio is None else amount.ratio, amount.threshold, own is not None)
            skip = for_layer(self, self.layers, self.types, name, kind).skip
            if not skip and (wish.ratio or wish.threshold is not None):
                found[name] = wish
        return found

    def _own_amount(self, name: str, kind: str) -> Prune | None:
        """Return the ratio or threshold that a layer has by its name, else by its type; None where it has neither."""
        blank = msgspec.structs.replace(self, ratio=None, threshold=None)
        by_name = for_layer(blank, self.layers, {}, name, kind)
        by_type = for_layer(blank, {}, self.types, name, kind)
        return next((one for one in (by_name, by_type) if one.ratio is not None or one.threshold is not None), None)

    def _rule(self) -> Rule:
        pattern = None if self.pattern is None else rules.pattern_of(self.pattern)
        return Rule(over_model=self.scope == "global", lamp=self.importance == "lamp", pattern=pattern)

    def _ramp(self) -> Ramp:
        power = {"constant": 0.0, "linear": 1.0}.get(self.schedule, self.power)
        return Ramp(self.initial_sparsity, self.begin, self.end, self.frequency, power)

    def _rounds(self) -> int:
        return self.iterations if self.schedule == "iterative" else 1
