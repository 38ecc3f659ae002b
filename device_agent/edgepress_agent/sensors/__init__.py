"""Sensors: one file per source of power, temperature or throttling, found by looping over the files.

Each has `detect(root)`: a `Source` where the board has it, else None. `root` is `/`, or a recorded tree.
"""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

_log = logging.getLogger(__name__)

_WIDEST_FIRST = ("external", "module", "pmic-rails", "package", "battery")
"""Of several power sensors the one that sees most of the board is read."""


@dataclass(frozen=True)
class Source:
    """A sensor and how to read it.

    `read` returns mW, °C, or for throttling bits or a count; it raises `Unavailable`. `rate_hz` is how often
    asking makes sense. A power source with `wraps_at_mj` is a counter instead: `read` returns mJ, modulo that.
    """

    sensor: Sensor
    read: Callable[[], float]
    rate_hz: float
    wraps_at_mj: float | None = None


@functools.lru_cache(maxsize=8)
def found(root: Path) -> tuple[Source, ...]:
    """Return the board's sensors. They are looked for once: they do not come and go while an agent runs."""
    detectors = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return tuple(source for name in detectors if (source := _detect(name, root)) is not None)


def _detect(name: str, root: Path) -> Source | None:
    try:
        source: Source | None = importlib.import_module(f"{__name__}.{name}").detect(root)
    except Unavailable as error:
        _log.warning("sensor %s is there and cannot be read, so its readings stay blank: %s", name, error)
        return None
    return source


def power(sources: Sequence[Source]) -> Source | None:
    """Return the power sensor that sees most of the board."""
    meters = [source for source in sources if source.sensor.quantity == "power"]
    return min(meters, key=lambda source: _WIDEST_FIRST.index(source.sensor.scope), default=None)


def of(sources: Sequence[Source], quantity: str) -> list[Source]:
    """Return the sensors of one quantity."""
    return [source for source in sources if source.sensor.quantity == quantity]
