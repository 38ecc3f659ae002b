"""The Raspberry Pi 5's power controller, through the firmware's `pmic_read_adc`.

It sees the processor's rails: neither USB, HAT and NVMe at 5 V nor what the converters lose.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

from edgepress_agent.board import vcgencmd
from edgepress_agent.board.sysfs import is_simulated
from edgepress_agent.sensors import Source

_RATE_HZ = 10.0
"""A read takes about 23 ms."""

_LINE = re.compile(
    r"(?<!\S)(?P<name>\w{1,40})_(?P<unit>[AV]) (?:current|volt)\(\d{1,3}\)"
    r"=(?P<value>-?\d{1,6}\.\d{1,12})(?P=unit)(?!\S)",
    re.ASCII,
)


def detect(root: Path) -> Source | None:
    """Ask once, and see whether rails pair."""
    rails = rails_mw(vcgencmd.ask(root, "pmic_read_adc") or "")
    if not rails:
        return None
    read = partial(_read_mw, root, tuple(rails))
    return Source(Sensor("pi5-pmic", "power", "pmic-rails", is_simulated(root)), read, _RATE_HZ)


def rails_mw(answer: str) -> dict[str, float]:
    """Return mW by rail; current and voltage pair by name, never by index.

    >>> rails_mw("VDD_CORE_A current(7)=2.0A VDD_CORE_V volt(15)=0.9V EXT5V_V volt(24)=5.1V")
    {'VDD_CORE': 1800.0}
    """
    values = {(found["name"], found["unit"]): float(found["value"]) for found in _LINE.finditer(answer)}
    return {
        name: current * values[name, "V"] * 1000
        for (name, unit), current in values.items()
        if unit == "A" and (name, "V") in values
    }


def _read_mw(root: Path, expected: tuple[str, ...]) -> float:
    rails = rails_mw(vcgencmd.ask(root, "pmic_read_adc") or "")
    if lacking := [name for name in expected if name not in rails]:
        # A sum over fewer rails would pass for a board that draws less.
        raise Unavailable(f"pmic_read_adc: no reading of {', '.join(lacking)}")
    return sum(rails[name] for name in expected)
