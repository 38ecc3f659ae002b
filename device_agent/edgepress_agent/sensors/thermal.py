"""The processor's temperature, from the kernel's thermal zones in m°C."""

from __future__ import annotations

from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import is_simulated, number, read_text, thousandths
from edgepress_agent.sensors import Source

_RATE_HZ = 1.0
_BEST = ("tj-thermal", "cpu-thermal", "CPU-therm", "x86_pkg_temp", "soc-thermal")
"""The junction where a board tells it, else the processor."""

_LOWEST_MILLI = -100_000
"""Jetsons answer -256000 for a zone that is switched off; a Nano's PMIC says 100000 whatever happens."""


def detect(root: Path) -> Source | None:
    """Take the best zone by type, else the hottest."""
    zones: dict[str, tuple[int, Path]] = {}
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, milli = read_text(folder / "type"), _milli_or_none(folder)
        if kind and not kind.startswith("PMIC") and milli is not None:
            zones.setdefault(kind, (milli, folder / "temp"))
    if not zones:
        return None
    hottest = max(zones, key=lambda kind: zones[kind][0])
    kind = next((best for best in _BEST if best in zones), hottest)
    path = zones[kind][1]
    return Source(Sensor(kind, "temperature", "zone", is_simulated(root)), thousandths(path), _RATE_HZ)


def _milli_or_none(folder: Path) -> int | None:
    try:
        milli = number(folder / "temp")
    except Unavailable:  # zones that are switched off refuse to be read
        return None
    return milli if milli > _LOWEST_MILLI else None
