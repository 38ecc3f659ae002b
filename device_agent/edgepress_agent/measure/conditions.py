"""Under which conditions a number was measured: governor, clock, temperature, throttling, load. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Conditions

from edgepress_agent import sensors
from edgepress_agent.board import cpufreq, proc
from edgepress_agent.sensors import pi_throttled

T = TypeVar("T")

_THROTTLE_BITS = 0xF000F
"""Those that mean something: of this moment, and since boot."""

THROTTLED_NOW = 0xF
"""Those of this moment."""


@dataclass(frozen=True)
class Snapshot:
    """Conditions, and what only differences or notes can say: throttling events, the power mode, failed readings."""

    conditions: Conditions
    throttle_events: int | None
    power_mode: str | None
    troubles: tuple[str, ...] = ()


def read(sources: Sequence[sensors.Source], root: Path) -> Snapshot:
    """Read the board's state; what it does not have is None, and so is what fails, which `troubles` then tells."""
    troubles: list[str] = []

    def told(what: str, reading: Callable[[], T]) -> T | None:
        try:
            return reading()
        except Unavailable as error:
            troubles.append(f"{what} stays blank: {error}")
            return None

    def sensed(quantity: str, name: str = "") -> float | None:
        every = [source for source in sensors.of(sources, quantity) if name in ("", source.sensor.name)]
        return told(every[0].sensor.name, every[0].read) if every else None

    throttle_bits, throttle_events = sensed("throttling", "pi-throttled"), sensed("throttling", "soctherm-oc")
    conditions = Conditions(
        governor=told("governor", partial(cpufreq.governor, root)),
        frequency_hz=told("clock", partial(cpufreq.frequency_hz, root)),
        temperature_celsius=sensed("temperature"),
        throttle_bits=None if throttle_bits is None else int(throttle_bits),
        load_1min=told("load", partial(proc.load_1min, root)),
    )
    mode = told("power mode", partial(cpufreq.power_mode, root))
    return Snapshot(conditions, None if throttle_events is None else int(throttle_events), mode, tuple(troubles))


def throttled(before: Snapshot, after: Snapshot) -> str:
    """Say how the board has begun to throttle between two moments; empty where it has not, or where nobody can say."""
    new_bits = (after.conditions.throttle_bits or 0) & ~(before.conditions.throttle_bits or 0) & _THROTTLE_BITS
    if before.conditions.throttle_bits is not None and new_bits:
        return f"the board throttled: {pi_throttled.words(new_bits)}"
    if before.throttle_events is not None and after.throttle_events is not None:
        new = after.throttle_events - before.throttle_events
        return f"the board throttled {new} times for over-current while this was measured" if new > 0 else ""
    return ""


def throttling(now: Snapshot) -> str:
    """Say how the board throttles at this moment; empty where it does not, or where nobody can say."""
    bits = (now.conditions.throttle_bits or 0) & THROTTLED_NOW
    return f"the board is throttled: {pi_throttled.words(bits)}" if bits else ""


def notes(before: Snapshot, *later: Snapshot) -> tuple[str, ...]:
    """Say what the fields of `Conditions` have no place for, of several moments in their order."""
    last = later[-1]
    lines = list(dict.fromkeys(trouble for shot in (before, *later) for trouble in shot.troubles))
    if last.power_mode is not None:
        lines.append(f"power mode {last.power_mode}")
    if line := throttled(before, last):
        lines.append(line)
    return tuple(lines)
