"""The processor's temperature, from the kernel's thermal zones in m°C."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import is_simulated, number, read_name
from edgepress_agent.sensors import Source

_RATE_HZ = 1.0
_BEST = (
    "tj-thermal",
    "tj-therm",
    "cpu-thermal",
    "cpu-therm",
    "mcpu-therm",
    "bcpu-therm",
    "x86_pkg_temp",
    "soc-thermal",
)
"""The junction where a board tells it, else the processor; in the lower case, for L4T spells them in both."""

_LOWEST_MILLI, _HIGHEST_MILLI = -100_000, 250_000
"""Jetsons answer -256000 for a zone that is switched off; a Nano's PMIC says 100000 whatever happens."""


def detect(root: Path) -> Source | None:
    """Take the best zone by type, else the hottest."""
    zones: dict[str, tuple[float, Path]] = {}
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        try:
            kind, celsius = read_name(folder / "type"), _celsius(folder / "temp")
        except Unavailable:  # a zone that is switched off refuses to be read
            continue
        if kind and not kind.startswith("PMIC"):
            zones.setdefault(kind, (celsius, folder / "temp"))
    if not zones:
        return None
    rank = {kind: _BEST.index(kind.lower()) if kind.lower() in _BEST else len(_BEST) for kind in zones}
    kind = min(zones, key=lambda kind: (rank[kind], -zones[kind][0]))
    sensor = Sensor(kind, "temperature", "zone", is_simulated(root))
    return Source(sensor, partial(_celsius, zones[kind][1]), _RATE_HZ)


def _celsius(path: Path) -> float:
    milli = number(path)
    if not _LOWEST_MILLI < milli < _HIGHEST_MILLI:
        raise Unavailable(f"{path}: {milli} m°C is what no board has: the zone is switched off")
    return milli / 1000
