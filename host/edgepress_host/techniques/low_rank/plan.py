"""Which layer gets which factors: by its rule, by a budget, by measured sensitivity; and what is vetoed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Protocol

import msgspec
from torch import nn

from edgepress_host.press.sensitivity import scorer, sweep
from edgepress_host.press.structure import replace_layer
from edgepress_host.technique import StepFailed, Workbench
from edgepress_host.techniques.low_rank.matrices import OfMatrices
from edgepress_host.techniques.low_rank.pieces import Cost, built, cost, whole
from edgepress_host.techniques.low_rank.ranks import Choice, Offer, Option, allocate
from edgepress_host.techniques.low_rank.survey import Site, leave_inference_path
from edgepress_host.techniques.low_rank.timing import times_as_long

_ENERGIES = (0.995, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Levels that sensitivity is measured at, from mild to harsh."""


class Ruled(Protocol):
    """Options that may have a rule."""

    @property
    def energy(self) -> float | None:
        """Share of the squared norm to keep."""

    @property
    def rank(self) -> int | tuple[int, int] | None:
        """Ranks as numbers."""

    @property
    def evbmf(self) -> bool | None:
        """Whether the noise decides."""


class Rule(msgspec.Struct, frozen=True):
    """How a layer's ranks are found: by one of the three, or `shared` with other layers."""

    energy: float | None
    rank: int | tuple[int, int] | None
    evbmf: bool

    @property
    def shared(self) -> bool:
        """Tell whether a budget or the measured sensitivity decides."""
        return self.energy is None and self.rank is None and not self.evbmf


def rule_of(options: Ruled) -> Rule:
    """Return the rule in a record of options."""
    return Rule(options.energy, options.rank, bool(options.evbmf))


def wishes(offer: Offer, rule: Rule, round_to: int) -> list[Choice]:
    """Return the choices that a layer's own rule asks for, the cheapest first; none where there are no such ranks."""
    if rule.energy is not None:
        return sorted(offer.of_energy(rule.energy, round_to), key=lambda choice: choice.cost.macs)
    found = {}
    for method, decomposition in offer.methods.items():
        if rule.rank is not None:
            found[method] = decomposition.of_number(rule.rank)
        elif isinstance(decomposition, OfMatrices) and (ranks := decomposition.of_noise(round_to)) is not None:
            found[method] = ranks
    return [offer.priced(method, ranks) for method, ranks in found.items()]


def by_budget(
    offers: Mapping[str, Offer],
    fixed: Mapping[str, Choice],
    sites: Mapping[str, Site],
    *,
    share: float,
    of: str,
    round_to: int,
) -> dict[str, Choice]:
    """Choose ranks such that all layers together cost `share` of what they cost now. Raises StepFailed."""

    def price(paid: Cost) -> int:
        return paid.macs if of == "macs" else paid.weights

    everything = {name: price(cost([whole(site.layer)], site.shapes)) for name, site in sites.items()}
    choices = {name: offer.spread(round_to) for name, offer in offers.items()}
    options = {
        name: [Option(everything[name], 0.0), *(Option(price(one.cost), 1 - one.kept) for one in some)]
        for name, some in choices.items()
    }
    others = sum(paid for name, paid in everything.items() if name not in offers and name not in fixed)
    others += sum(price(choice.cost) for choice in fixed.values())
    total = sum(everything.values())
    places = allocate(options, int(share * total) - others)
    if places is None:
        least = others + sum(min(option.cost for option in some) for some in options.values())
        raise StepFailed(
            f"budget: {share:g} of the {of} cannot be reached, the least ranks leave {least / total:.3f}; "
            'ask for more, or let more layers take part (method = "auto")'
        )
    return {name: choices[name][place - 1] for name, place in places.items() if place}


def by_sensitivity(
    model: nn.Module, offers: Mapping[str, Offer], bench: Workbench, *, max_drop: float, round_to: int
) -> dict[str, Choice]:
    """Choose for each layer the cheapest factors that alone cost at most `max_drop` of the metric on validate."""
    score = scorer(bench.split("validate"), bench.metric, bench.memo)
    before = score(model)
    found: dict[str, Choice] = {}
    for name, offer in offers.items():
        for energy in _ENERGIES:
            saving = offer.saving(offer.of_energy(energy, round_to))
            if not saving or (name in found and saving[0] == found[name]):
                continue
            choice = saving[0]

            def change(model: nn.Module, name: str, _: float, choice: Choice = choice) -> nn.Module:
                changed = copy.deepcopy(model)
                carry_out(changed, {name: choice}, offers)
                return changed

            (point,) = sweep(model, {name: (choice.kept,)}, change, score, say=bench.say)
            if before - point.accuracy > max_drop + 1e-9:
                break
            found[name] = choice
    return found


def admitted(offer: Offer, choices: list[Choice], bench: Workbench, *, measure: bool) -> Choice | None:
    """Return the first choice that saves, and runs faster where that is measured; a note has the reason for none."""
    reasons = []
    for choice in choices:
        if choice.cost.macs >= offer.whole.macs:
            reasons.append(f"{described(choice)} needs {choice.cost.macs:,} MACs, the layer {offer.whole.macs:,}")
            continue
        if measure:
            bench.say(f"timing {offer.site.name} in factors")
            ratio = times_as_long(offer.site.layer, factors(offer, choice), offer.site.shapes)
            if ratio >= 1:
                reasons.append(f"{described(choice)} ran {ratio:.2f} times as long in ONNX Runtime")
                continue
        return choice
    leave(offer.site.name, "; ".join(reasons), bench)
    return None


def leave(name: str, why: str, bench: Workbench) -> None:
    """Say that a layer stays as it is."""
    bench.note(f"{name} is left as it is: {why}")


def described(choice: Choice) -> str:
    """Name method and ranks in words.

    >>> described(Choice("tucker", (4, 8), Cost(10, 5), 0.9))
    'tucker of rank 4×8'
    """
    return f"{choice.method} of rank {'×'.join(map(str, choice.ranks))}"


def summary(chosen: Mapping[str, Choice], offers: Mapping[str, Offer]) -> str:
    """Say what became of the layers, with the share of their MACs that is left."""
    some = [
        f"{name} {described(choice)} ({choice.cost.macs / offers[name].whole.macs:.2f} of its MACs)"
        for name, choice in chosen.items()
    ]
    return f"in factors: {', '.join(some)}"


def factors(offer: Offer, choice: Choice) -> nn.Sequential:
    """Build the thin layers of a choice."""
    decomposition = offer.methods[choice.method]
    return built(offer.site.layer, decomposition.pieces(choice.ranks), decomposition.weights(choice.ranks))


def carry_out(model: nn.Module, chosen: Mapping[str, Choice], offers: Mapping[str, Offer]) -> None:
    """Put the chosen factors in the layers' places; changes `model`."""
    for name, choice in chosen.items():
        replace_layer(model, name, factors(offers[name], choice))
    leave_inference_path(model)
