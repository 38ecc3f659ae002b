"""Low rank: a dense or convolutional layer becomes two to four thinner ones, whose product is near to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.strict import changed
from edgepress_host.press.trained import Trained
from edgepress_host.press.training import supervised
from edgepress_host.technique import Stage, StepFailed, Trait, Workbench, check_patterns, for_layer
from edgepress_host.techniques.low_rank.anew import initialise, rescale
from edgepress_host.techniques.low_rank.pieces import Method
from edgepress_host.techniques.low_rank.plan import (
    Rule,
    admitted,
    by_budget,
    by_sensitivity,
    carry_out,
    leave,
    rule_of,
    summary,
    wishes,
)
from edgepress_host.techniques.low_rank.ranks import Choice, Offer, methods_for, offer
from edgepress_host.techniques.low_rank.regularise import TraceNorm
from edgepress_host.techniques.low_rank.survey import Site, survey
from edgepress_host.text import one_line

Energy = Annotated[float, msgspec.Meta(gt=0, le=1)]
# Bounds are checked by hand: msgspec 0.22 crashes on a bounded number beside a tuple of numbers.
Rank = int | tuple[int, int]
Wanted = Literal["svd", "tucker", "cp", "spatial", "auto"]


class LowRankLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    method: Wanted | None = None
    energy: Energy | None = None
    rank: Rank | None = None
    evbmf: bool | None = None
    skip: bool | None = None


class Task(NamedTuple):
    """A layer to be factorized: by which methods, at which ranks."""

    site: Site
    methods: tuple[Method, ...]
    rule: Rule


class LowRank(Trained, frozen=True):
    """Put layers in factors, at ranks by exactly one of `energy`, `rank`, `evbmf`, `budget` and `max_drop`.

    Dense layers and 1×1 convolutions become two layers by their singular value decomposition; `method` is for the other
    convolutions: svd leaves them, tucker, cp and spatial take them apart (see the files of these names, and
    matrices.py), and auto takes whichever needs the fewest multiply-accumulates (MACs).

    - `energy`: the least ranks that keep this share of the squared norm of the weights.
    - `rank`: this many, for tucker also [inputs, outputs].
    - `evbmf`: as many as stand above the noise (Nakajima et al. 2013).
    - `budget`: ranks over all layers such that this share of the MACs of the dense and convolutional layers is left
      (`budget_of` "params": of their weights), with little energy lost for each MAC saved.
    - `max_drop`: for each layer the cheapest factors that alone lower the metric on validate by at most this.

    `round_to` makes ranks multiples of it: convolutions of rank 32 ran faster than those of 31 or 33, dense layers did
    not care (ONNX Runtime on x86). A layer that would not save MACs, or with `measure` would not run faster in
    ONNX Runtime on this machine, stays as it is, with the reason in a note.

    `when` is "after" training; "start": the model is initialised anew in factors, and `epochs` train it (spectral
    initialisation of Khodak et al., ICLR 2021); or "regularised": first `regularise_epochs` with a trace norm penalty
    of `strength`, which draws the energy into fewer ranks.
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train", "calibrate", "validate")
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"energy": 0.5},
        {"rank": 2, "epochs": 1, "samples": 64},
        {"method": "auto", "budget": 0.5},
    )

    method: Wanted = "svd"
    energy: Energy | None = None
    rank: Rank | None = None
    evbmf: bool = False
    budget: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    budget_of: Literal["macs", "params"] = "macs"
    max_drop: Annotated[float, msgspec.Meta(ge=0)] | None = None
    round_to: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    hooi_iterations: Annotated[int, msgspec.Meta(ge=0, le=100)] = 10
    measure: bool = False
    when: Literal["after", "start", "regularised"] = "after"
    strength: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    regularise_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    skip: bool = False
    layers: dict[str, LowRankLayer] = msgspec.field(default_factory=dict)
    types: dict[str, LowRankLayer] = msgspec.field(default_factory=dict)

    def makes(self) -> frozenset[Trait]:
        """Return that layers are in factors."""
        return frozenset({"factors"})

    def breaks(self) -> frozenset[Trait]:
        """Return that the weights are new ones: neither zeros nor values of the old ones are left."""
        lost: frozenset[Trait] = frozenset({"zeros", "shared", "grid"})
        return lost | {"factors"} if self.when == "start" else lost

    def check(self) -> None:
        """Raise UsageError for options that contradict each other, or need another one."""
        if self.when != "regularised":
            super().check()
        given = (self.energy, self.rank, self.evbmf or None, self.budget, self.max_drop)
        if sum(value is not None for value in given) != 1:
            raise UsageError("energy: expected either energy (0 to 1), rank, evbmf, budget or max_drop")
        if self.budget_of != "macs" and self.budget is None:
            raise UsageError("budget_of: it says what the budget is of, and there is no budget")
        if self.rank is not None and self.round_to > 1:
            raise UsageError("round_to: a rank that is given as a number is taken as it is; leave round_to away")
        if self.when == "start" and not self.epochs:
            raise UsageError('epochs: when = "start" initialises the model anew; it needs epochs to learn in')
        if self.when == "regularised" and (self.strength is None or self.regularise_epochs is None):
            raise UsageError('strength: when = "regularised" needs strength (try 1.0) and regularise_epochs')
        if self.when != "regularised" and (self.strength is not None or self.regularise_epochs is not None):
            raise UsageError('strength: strength and regularise_epochs are for when = "regularised"')
        methods = {self.method, *(own.method for own in (*self.layers.values(), *self.types.values()))}
        if "hooi_iterations" in changed(self) and not methods & {"tucker", "auto"}:
            raise UsageError("hooi_iterations: they are for method tucker; set it, or auto, or leave them out")
        _check_rule("", self.method, rule_of(self))
        self._check_overrides()

    def recovers(self) -> bool:
        """Tell whether the step trains: the penalty is trained with, too."""
        return super().recovers() or self.when == "regularised"

    def _check_overrides(self) -> None:
        overrides = [(f"layers.{key!r}", own) for key, own in self.layers.items()]
        overrides += [(f"types.{key}", own) for key, own in self.types.items()]
        for where, own in overrides:
            if sum(value is not None for value in (own.energy, own.rank, own.evbmf)) > 1:
                raise UsageError(f"{where}.energy: expected at most one of energy, rank and evbmf")
            if own.evbmf is False:
                raise UsageError(f"{where}.evbmf: expected true; to leave a layer as it is, skip = true")
            rule = rule_of(own)
            _check_rule(f"{where}.", own.method or self.method, rule_of(self) if rule.shared else rule)

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a copy with thinner layers, trained as `when` and `epochs` say."""
        thin = copy.deepcopy(model).requires_grad_(True)
        sample = torch.from_numpy(bench.calibration(1).copy())
        sites = survey(thin, sample)
        tasks = self._tasks(sites, bench)
        if self.when == "regularised":
            self._regularise(thin, tasks, bench)
        bench.say("taking layers apart")
        offers = self._offers(tasks, bench)
        chosen = self._chosen(thin, sites, tasks, offers, bench)
        if self.when == "start":
            _note_kept_weights(initialise(thin, bench.seed), bench)
            offers = self._offers(
                {name: tasks[name]._replace(methods=(one.method,)) for name, one in chosen.items()}, bench
            )
        carry_out(thin, chosen, offers)
        if self.when == "start":
            rescale(thin, {name: offers[name].priced(one.method, one.ranks) for name, one in chosen.items()})
        _try_out(thin, sample)
        if chosen:
            bench.note(summary(chosen, offers))
            if self.epochs:
                self.train(thin, bench, supervised)
        return thin.eval()

    def _tasks(self, sites: Mapping[str, Site], bench: Workbench) -> dict[str, Task]:
        """Return what is to be factorized, and how. Raises UsageError and StepFailed."""
        check_patterns(self.layers, self.types, {name: type(site.layer).__name__ for name, site in sites.items()})
        tasks: dict[str, Task] = {}
        obstacles: dict[str, str] = {}
        for name, site in sites.items():
            own = for_layer(self, self.layers, self.types, name, type(site.layer).__name__)
            methods = () if own.skip else methods_for(site.layer, own.method)
            if methods and site.obstacle:
                obstacles[name] = site.obstacle
            elif methods:
                rule = self._rule(name, type(site.layer).__name__)
                if methods != ("svd",):
                    # A rule by name may meet a method by type.
                    _check_rule(f"layers.{name!r}.", own.method, rule)
                tasks[name] = Task(site, methods, rule)
        for name, why in obstacles.items():
            leave(name, why, bench)
        if not tasks:
            why = "; ".join(f"{name}: {why}" for name, why in obstacles.items())
            hint = why or "svd takes dense layers and 1×1 convolutions, auto other convolutions, too"
            raise StepFailed(f"no layer that method {self.method!r} can take apart ({hint})")
        return tasks

    def _rule(self, name: str, type_: str) -> Rule:
        """Return a layer's own rule, or its type's, or the one for all."""
        blank = msgspec.structs.replace(self, energy=None, rank=None, evbmf=False)
        by_name = rule_of(for_layer(blank, self.layers, {}, name, type_))
        by_type = rule_of(for_layer(blank, {}, self.types, name, type_))
        return next((rule for rule in (by_name, by_type) if not rule.shared), rule_of(self))

    def _offers(self, tasks: Mapping[str, Task], bench: Workbench) -> dict[str, Offer]:
        return {
            name: offer(task.site, task.methods, iterations=self.hooi_iterations, seed=bench.seed)
            for name, task in tasks.items()
        }

    def _chosen(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        tasks: Mapping[str, Task],
        offers: Mapping[str, Offer],
        bench: Workbench,
    ) -> dict[str, Choice]:
        """Choose factors for each layer; those that stay as they are get a note."""
        alone = [name for name, task in tasks.items() if not task.rule.shared]
        chosen: dict[str, Choice] = {}
        for name in alone:
            wanted = wishes(offers[name], tasks[name].rule, self.round_to)
            if not wanted:
                leave(name, _why_none(tasks[name].rule), bench)
            elif (one := admitted(offers[name], wanted, bench, measure=self.measure)) is not None:
                chosen[name] = one
        together = {name: offers[name] for name in tasks if name not in alone}
        found: Mapping[str, Choice] = {}
        if self.budget is not None:
            found = by_budget(together, chosen, sites, share=self.budget, of=self.budget_of, round_to=self.round_to)
        elif self.max_drop is not None:
            found = by_sensitivity(model, together, bench, max_drop=self.max_drop, round_to=self.round_to)
        for name, whole in together.items():
            if name not in found:
                leave(name, self._why_not_shared(), bench)
            elif (one := admitted(whole, [found[name]], bench, measure=self.measure)) is not None:
                chosen[name] = one
        return {name: chosen[name] for name in tasks if name in chosen}

    def _why_not_shared(self) -> str:
        if self.budget is not None:
            return f"the budget of {self.budget:g} is met with it whole"
        return f"no factors that save lose at most max_drop {self.max_drop:g}"

    def _regularise(self, model: nn.Module, tasks: Mapping[str, Task], bench: Workbench) -> None:
        """Train with the penalty first."""
        assert self.strength is not None
        assert self.regularise_epochs is not None
        penalty = TraceNorm([(task.site.layer, task.methods) for task in tasks.values()], self.strength)
        longer = msgspec.structs.replace(self, epochs=self.regularise_epochs)
        longer.train(model, bench, penalty.added_to(supervised))


def _check_rule(where: str, method: str, rule: Rule) -> None:
    """Refuse ranks that a method does not have. Raises UsageError."""
    if rule.rank is not None and min(rule.rank if isinstance(rule.rank, tuple) else (rule.rank,)) < 1:
        raise UsageError(f"{where}rank: expected at least 1, got {rule.rank}")
    if isinstance(rule.rank, tuple) and method != "tucker":
        raise UsageError(f"{where}rank: [inputs, outputs] is for method tucker; {method} has one rank")
    if method == "auto" and rule.rank is not None:
        raise UsageError(f"{where}rank: auto compares methods at the same energy; give energy, budget or max_drop")
    if method in ("auto", "cp") and rule.evbmf:
        raise UsageError(f"{where}evbmf: it finds ranks of matrices, for svd, tucker and spatial; not for {method}")


def _why_none(rule: Rule) -> str:
    if rule.evbmf:
        return "EVBMF finds no signal above the noise"
    return f"no CP sum that saves keeps {rule.energy:g} of the energy"


def _try_out(model: nn.Module, sample: torch.Tensor) -> None:
    """Run the model once. Raises StepFailed where its own code needs a layer whole."""
    try:
        with torch.no_grad():
            model.eval()(sample)
    except Exception as error:
        raise StepFailed(
            f"the model does not run with its layers in factors ({one_line(error)}); "
            "leave the layer that its code reads as it is: layers.NAME.skip = true"
        ) from error


def _note_kept_weights(names: list[str], bench: Workbench) -> None:
    if names:
        bench.note(f"kept the weights they had, for want of an initialisation: {', '.join(names)}")
