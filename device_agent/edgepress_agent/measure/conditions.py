"""Under which conditions a number was measured: governor, clock, temperature, throttling, load. Nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepress_protocol.measurement import Conditions

from edgepress_agent import sensors
from edgepress_agent.board.sysfs import read_int, read_text

_CPU = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Snapshot:
    """Conditions, and what only differences or notes can say: throttling events and the power mode."""

    conditions: Conditions
    throttle_events: int | None
    power_mode: str | None


def read(sources: Sequence[sensors.Source], root: Path) -> Snapshot:
    """Read the board's state; what it does not have is None.

    Raises:
        Unavailable: a sensor that is there cannot be read.
    """
    temperature = next(iter(sensors.of(sources, "temperature")), None)
    throttling = {source.sensor.name: int(source.read()) for source in sensors.of(sources, "throttling")}
    load = read_text(root / "proc/loadavg")
    return Snapshot(
        Conditions(
            governor=read_text(root / _CPU / "cpu0/cpufreq/scaling_governor"),
            frequency_hz=_frequency_hz(root),
            temperature_celsius=None if temperature is None else temperature.read(),
            throttle_bits=throttling.get("pi-throttled"),
            load_1min=None if load is None else float(load.split()[0]),
        ),
        throttling.get("soctherm-oc"),
        read_text(root / "var/lib/nvpmodel/status"),
    )


def notes(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """Say what the fields of `Conditions` have no place for."""
    lines = []
    if after.power_mode is not None:
        lines.append(f"power mode {after.power_mode}")
    if before.throttle_events is not None and after.throttle_events is not None:
        new = after.throttle_events - before.throttle_events
        if new:
            lines.append(f"the board throttled {new} times for over-current while this was measured")
    return tuple(lines)


def _frequency_hz(root: Path) -> int | None:
    """Return the fastest core's clock: the tight loop runs there."""
    clocks = [read_int(path) for path in (root / _CPU).glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    return max((khz * 1000 for khz in clocks if khz is not None), default=None)
