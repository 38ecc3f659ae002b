"""Choose the best variant per kind of board, and say in words why each of the others lost. Pure.

Budget first, then the Pareto front over accuracy, p95 latency, peak memory, file size, and energy where all that are
compared have it; of the front, the one that is least in what the budget minimises. Ties fall the same way always.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from edgepress_host.choice import figures
from edgepress_host.choice.budget import LIMITS, Budget
from edgepress_host.choice.figures import OBJECTIVES, Entry, Figures

Per = Literal["kind", "device"]
Outcome = Literal["chosen", "front", "lost"]


class Standing(msgspec.Struct, frozen=True):
    """Where one artifact stands in one group. `devices` are those that measured it."""

    variant: str
    format: str
    outcome: Outcome
    reason: str
    figures: Figures
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`variant:format`, as commands take it."""
        return f"{self.variant}:{self.format}"


class Choice(msgspec.Struct, frozen=True):
    """The choice for one group: a kind of board, or one device.

    `compared` are the objectives of the Pareto front: those that every candidate within the budget has.
    """

    group: str
    per: Per
    devices: tuple[str, ...]
    budget: Budget
    chosen: str | None
    why: str
    compared: tuple[str, ...]
    standings: tuple[Standing, ...]

    @property
    def measured(self) -> bool:
        """Tell whether anything here has a measurement that a choice can rest on."""
        return any(standing.figures.devices for standing in self.standings)

    @property
    def winner(self) -> Standing | None:
        """The chosen artifact's standing."""
        return next((standing for standing in self.standings if standing.outcome == "chosen"), None)


def pick(entries: Iterable[Entry], budget: Budget, *, per: Per = "kind") -> tuple[Choice, ...]:
    """Choose for every kind of board (or device) that measured anything; the order of `entries` does not matter.

    Raises:
        UsageError: the budget has a limit that nothing could keep.
    """
    budget.check()
    ordered = sorted(entries, key=lambda entry: (entry.variant, entry.format))
    groups = sorted({_group(run, per) for entry in ordered for run in entry.runs})
    return tuple(_pick_one(group, ordered, budget, per) for group in groups)


def _group(run: figures.Run, per: Per) -> str:
    return run.kind if per == "kind" else run.device


def _pick_one(group: str, entries: Sequence[Entry], budget: Budget, per: Per) -> Choice:
    ours = [
        msgspec.structs.replace(entry, runs=tuple(run for run in entry.runs if _group(run, per) == group))
        for entry in entries
    ]
    reference = figures.reference(ours)
    devices = tuple(sorted({run.device for entry in ours for run in entry.runs}))
    lost: list[Standing] = []
    able: list[tuple[Entry, Figures]] = []
    over: list[Figures] = []
    for entry in ours:
        found = figures.gather(entry, reference)
        absent = figures.why_not_measured(entry, group, per)
        reason = absent or _over_budget(found, budget)
        if reason and not absent:
            over.append(found)
        if reason:
            lost.append(_standing(entry, "lost", reason, found, len(devices)))
        else:
            able.append((entry, found))
    compared = tuple(key for key in OBJECTIVES if able and all(getattr(f, key) is not None for _, f in able))
    front = [pair for pair in able if not any(_dominates(other[1], pair[1], compared) for other in able)]
    front.sort(key=lambda pair: _rank(pair, budget))
    chosen = front[0] if front else None
    for pair in able:
        if not any(pair is member for member in front):
            winner = next(other for other in front if _dominates(other[1], pair[1], compared))
            lost.append(_standing(pair[0], "lost", _dominated(pair[1], winner, compared), pair[1], len(devices)))
    standings = [
        _standing(entry, "chosen" if index == 0 else "front", _why(index, found, front, budget), found, len(devices))
        for index, (entry, found) in enumerate(front)
    ]
    return Choice(
        group=group,
        per=per,
        devices=devices,
        budget=budget,
        chosen=chosen[0].name if chosen else None,
        why=standings[0].reason if standings else _why_none(lost, over, budget),
        compared=compared,
        standings=(*standings, *sorted(lost, key=lambda s: (s.variant, s.format))),
    )


def _over_budget(found: Figures, budget: Budget) -> str:
    """Every limit that is broken, or cannot be shown to be kept; empty where all are kept."""
    reasons: list[str] = []
    for name, limit in budget.limits.items():
        key = LIMITS[name]
        value: float | None = getattr(found, key)
        word = figures.WORDS[key]
        if value is None:
            reasons.append(f"{word} is not known, the budget is {figures.shown(key, limit)}")
        elif value > limit:
            reasons.append(f"{word} {figures.shown(key, value)} over the budget of {figures.shown(key, limit)}")
    if getattr(found, budget.minimise) is None and not reasons:
        reasons.append(f"{figures.WORDS[budget.minimise]} is to be minimised and was not measured")
    return "; ".join(reasons)


def _dominates(one: Figures, other: Figures, compared: Sequence[str]) -> bool:
    """At least as good in all that is compared, and better in something."""
    signs = [figures.compare(key, one, other) for key in compared]
    return all(sign >= 0 for sign in signs) and any(sign > 0 for sign in signs)


def _rank(pair: tuple[Entry, Figures], budget: Budget) -> tuple[float | str, ...]:
    """Order by what is minimised, then accuracy, file size, latency, and last the name: a total order."""
    entry, found = pair
    accuracy = found.accuracy if found.accuracy is not None else float("-inf")
    latency = found.p95_latency_ms if found.p95_latency_ms is not None else float("inf")
    goal: float = getattr(found, budget.minimise)
    return (goal, -accuracy, found.file_bytes, latency, entry.variant, entry.format)


def _dominated(found: Figures, winner: tuple[Entry, Figures], compared: Sequence[str]) -> str:
    better = [
        f"{figures.BETTER[key]} ({figures.shown(key, getattr(winner[1], key))}"
        f" against {figures.shown(key, getattr(found, key))})"
        for key in compared
        if figures.compare(key, winner[1], found) > 0
    ]
    equal = len(better) < len(compared)
    return f"dominated by {winner[0].name}: {', '.join(better)}{', and no worse in the rest' if equal else ''}"


def _why(index: int, found: Figures, front: Sequence[tuple[Entry, Figures]], budget: Budget) -> str:
    key = budget.minimise
    word = figures.WORDS[key]
    best: float = getattr(front[0][1], key)
    value: float = getattr(found, key)
    if index == 0:
        alone = " (alone on the front)" if len(front) == 1 else f", of {len(front)} on the front"
        return f"lowest {word}, {figures.shown(key, best)}, within the budget{alone}"
    if value == best:
        return f"on the front; ties with {front[0][0].name} in {word}, which goes by accuracy, then size"
    return (
        f"on the front; {front[0][0].name} has the lower {word}"
        f" ({figures.shown(key, best)} against {figures.shown(key, value)})"
    )


def _why_none(lost: Sequence[Standing], over: Sequence[Figures], budget: Budget) -> str:
    """Name every limit that nothing of what was measured (`over`) keeps: each of them must be lifted for a choice."""
    if not lost:
        return "nothing to choose from"
    if not over:
        return "no variant was measured here"
    reasons = [_nobody(name, over, limit) for name, limit in budget.limits.items()]
    if all(getattr(found, budget.minimise) is None for found in over):
        word = figures.WORDS[budget.minimise]
        reasons.append(f"no board here measured {word}, which is to be minimised; pass another --minimise")
    return "; and ".join(filter(None, reasons)) or "no variant keeps the budget"


def _nobody(name: str, over: Sequence[Figures], limit: float) -> str:
    """Say that nothing keeps this limit, and what to do; empty where something does."""
    key = LIMITS[name]
    word, option = figures.WORDS[key], f"--{name.replace('_', '-')}"
    known: list[float] = [value for found in over if (value := getattr(found, key)) is not None]
    if not known:
        nobody = "no drop of accuracy is known here" if key == "accuracy_drop" else f"no board here measured {word}"
        return f"{nobody}, which the budget limits; leave {name} out or pass {option} none"
    if min(known) <= limit:
        return ""
    return (
        f"no variant keeps the {word} of {figures.shown(key, limit)}; "
        f"the least is {figures.shown(key, min(known))}: pass a higher {option}, or none"
    )


def _standing(entry: Entry, outcome: Outcome, reason: str, found: Figures, devices: int) -> Standing:
    return Standing(entry.variant, entry.format, outcome, reason, found, figures.notes(entry, found, devices))
