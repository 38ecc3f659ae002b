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


@dataclass(frozen=True)
class Found:
    """The sensors of a board, and a line for each one that is there and cannot be used."""

    sources: tuple[Source, ...]
    troubles: tuple[str, ...]


@functools.lru_cache(maxsize=8)
def look(root: Path) -> Found:
    """Look for the board's sensors. They are looked for once: they do not come while an agent runs.

    One that goes raises `Unavailable` whenever it is read.
    """
    sources, troubles = [], []
    for name in (each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_")):
        try:
            source: Source | None = importlib.import_module(f"{__name__}.{name}").detect(root)
        except Unavailable as error:
            troubles.append(f"{name}: {error}")
            _log.warning("sensor %s is there and cannot be used, so its readings stay blank: %s", name, error)
            continue
        if source is not None:
            sources.append(source)
    return Found(tuple(sources), tuple(troubles))


def found(root: Path) -> tuple[Source, ...]:
    """Return the board's sensors, those that can be used."""
    return look(root).sources


def power(sources: Sequence[Source]) -> Source | None:
    """Return the power sensor that sees most of the board."""
    meters = [source for source in sources if source.sensor.quantity == "power"]
    return min(meters, key=lambda source: _WIDEST_FIRST.index(source.sensor.scope), default=None)


def of(sources: Sequence[Source], quantity: str) -> list[Source]:
    """Return the sensors of one quantity."""
    return [source for source in sources if source.sensor.quantity == quantity]
