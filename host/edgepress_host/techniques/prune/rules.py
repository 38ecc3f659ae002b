"""Which options go together: one that would do nothing is refused, with a way out."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from edgepress_protocol.errors import UsageError

DURING = ("constant", "linear", "polynomial")
"""Schedules by which weights go while the model trains."""

_SCORES = {
    "channel": ("l1", "l2", "bn_scale", "lamp", "fpgm", "taylor"),
    "magnitude": ("l2", "lamp"),
    "heads": ("l1", "l2", "taylor"),
    "hidden": ("l1", "l2", "taylor"),
    "block": ("l2",),
}
_KINDS_WITH = {
    "threshold": ("magnitude",),
    "pattern": ("magnitude",),
    "ratio": ("channel", "magnitude", "heads", "hidden"),
    "scope": ("channel", "magnitude", "heads", "hidden"),
    "round_to": ("channel", "hidden"),
    "count": ("block",),
    "max_drop": ("block",),
}
_SCHEDULES_WITH = {
    "iterations": ("iterative",),
    "initial_sparsity": ("linear", "polynomial"),
    "begin": DURING,
    "end": DURING,
    "frequency": DURING,
    "power": ("polynomial",),
}
_PATTERN = re.compile(r"([1-9][0-9]?):([1-9][0-9]?)")


class Chosen(NamedTuple):
    """Options as given, and the names of those that differ from their defaults."""

    options: dict[str, Any]
    given: set[str]


def check(chosen: Chosen) -> None:
    """Raise UsageError, starting with the option's name, where options contradict each other."""
    options, given = chosen
    kind, schedule = options["kind"], options["schedule"]
    for name in sorted(given & _KINDS_WITH.keys()):
        if kind not in _KINDS_WITH[name]:
            raise UsageError(f"{name}: belongs to kind {_or(_KINDS_WITH[name])}, and this is kind {kind}")
    for name in sorted(given & _SCHEDULES_WITH.keys()):
        if schedule not in _SCHEDULES_WITH[name]:
            raise UsageError(f"{name}: belongs to schedule {_or(_SCHEDULES_WITH[name])}, and this one is {schedule}")
    if options["importance"] not in _SCORES[kind]:
        raise UsageError(f"importance: kind {kind} takes {_or(_SCORES[kind])}, got {options['importance']}")
    _check_amount(options, kind)
    _check_schedule(options, kind, schedule)


def pattern_of(text: str) -> tuple[int, int]:
    """Return N and M of "N:M". Raises UsageError."""
    found = _PATTERN.fullmatch(text)
    if found is None or not int(found[1]) < int(found[2]):
        raise UsageError(f"pattern: expected N:M with N less than M, such as 2:4, got {text!r}")
    return int(found[1]), int(found[2])


def _check_amount(options: dict[str, Any], kind: str) -> None:
    amounts = [name for name in ("ratio", "threshold", "pattern") if options[name] is not None]
    if len(amounts) > 1:
        raise UsageError(f"{amounts[1]}: expected one of ratio, threshold and pattern, got {' and '.join(amounts)}")
    if options["pattern"] is not None:
        pattern_of(options["pattern"])
        if options["scope"] == "global" or options["importance"] == "lamp":
            raise UsageError("pattern: ranks neighbours within a layer, by magnitude; leave out scope and importance")
    if options["threshold"] is not None and (options["scope"] == "global" or options["importance"] == "lamp"):
        raise UsageError("threshold: is the same for all layers, by magnitude; leave out scope and importance")
    if options["importance"] == "lamp" and kind == "magnitude" and options["scope"] != "global":
        raise UsageError(
            "importance: lamp compares layers, and ranks as the magnitude does within one; set scope = 'global'"
        )
    if kind == "block" and options["count"] is None and options["max_drop"] is None:
        raise UsageError("count: kind block needs count, max_drop, or both")
    for where in ("layers", "types"):
        for name, override in options[where].items():
            _check_override(f"{where}.{name}", override, kind, patterned=options["pattern"] is not None)


def _check_override(where: str, override: dict[str, Any], kind: str, *, patterned: bool) -> None:
    if override["ratio"] is not None and override["threshold"] is not None:
        raise UsageError(f"{where}: expected ratio or threshold, got both")
    for name in ("ratio", "threshold"):
        if override[name] is not None and (kind not in _KINDS_WITH[name] or patterned):
            raise UsageError(f"{where}.{name}: does nothing with {'a pattern' if patterned else f'kind {kind}'}")


def _check_schedule(options: dict[str, Any], kind: str, schedule: str) -> None:
    if schedule != "one_shot" and not options["epochs"]:
        raise UsageError(f"schedule: {schedule} prunes between or during epochs of training; set epochs")
    if schedule in DURING and kind != "magnitude":
        raise UsageError(f"schedule: {schedule} belongs to kind magnitude; kind {kind} takes one_shot or iterative")
    if schedule in ("iterative", "linear", "polynomial"):
        for name in ("threshold", "pattern"):
            if options[name] is not None:
                raise UsageError(f"{name}: has no steps in between; take schedule one_shot or constant")
    if schedule == "iterative" and kind == "block" and options["count"] is None:
        raise UsageError("schedule: iterative takes out a part of count in each round; set count")
    ratio = options["ratio"]
    if ratio is not None and options["initial_sparsity"] > ratio:
        raise UsageError(f"initial_sparsity: expected at most the ratio ({ratio}), got {options['initial_sparsity']}")
    if not options["begin"] < options["end"]:
        raise UsageError(f"begin: expected less than end ({options['end']}), got {options['begin']}")


def _or(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
