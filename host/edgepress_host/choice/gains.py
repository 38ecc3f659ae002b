"""What a choice gained over the original, as measured on the same devices. Pure."""

from __future__ import annotations

import msgspec

from edgepress_host.choice.figures import ORIGINAL, Figures
from edgepress_host.choice.select import Choice, Standing


class Gains(msgspec.Struct, frozen=True):
    """The chosen artifact against `original`. Ratios above 1 are gains; None where one side was not measured."""

    chosen: str
    original: str
    smaller: float
    faster: float | None
    less_memory: float | None
    less_energy: float | None
    accuracy_change: float | None


def of(choice: Choice) -> Gains | None:
    """Compare with the original in the same format, else with its fastest one; None where it was not measured here."""
    winner = choice.winner
    if winner is None:
        return None
    base = _original(choice, winner.format)
    if base is None:
        return None
    found, against = winner.figures, base.figures
    comparable = found.accuracy_from == against.accuracy_from
    return Gains(
        chosen=winner.name,
        original=base.name,
        smaller=against.file_bytes / found.file_bytes,
        faster=_ratio(against.p50_latency_ms, found.p50_latency_ms),
        less_memory=_ratio(against.peak_memory_bytes, found.peak_memory_bytes),
        less_energy=_ratio(against.energy_mj, found.energy_mj),
        accuracy_change=_change(found, against) if comparable else None,
    )


def _original(choice: Choice, format_: str) -> Standing | None:
    measured = [one for one in choice.standings if one.variant == ORIGINAL and one.figures.p50_latency_ms is not None]
    same = [one for one in measured if one.format == format_]
    return min(same or measured, key=lambda one: one.figures.p50_latency_ms or 0.0, default=None)


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None


def _change(found: Figures, against: Figures) -> float | None:
    if found.accuracy is None or against.accuracy is None:
        return None
    return found.accuracy - against.accuracy
