"""The Raspberry Pi 5's power controller, through `vcgencmd pmic_read_adc`.

It sees the processor's rails: neither USB, HAT and NVMe at 5 V nor what the converters lose.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

from edgepress_agent.board import vcgencmd
from edgepress_agent.board.sysfs import is_simulated
from edgepress_agent.sensors import Source

_RATE_HZ = 10.0
"""A read takes about 23 ms."""

_LINE = re.compile(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=(-?[\d.]+)[AV]")


def detect(root: Path) -> Source | None:
    """Ask once, and see whether rails pair."""
    answer = vcgencmd.ask(root, "pmic_read_adc")
    if answer is None or not rails_mw(answer):
        return None
    return Source(Sensor("pi5-pmic", "power", "pmic-rails", is_simulated(root)), lambda: _read(root), _RATE_HZ)


def rails_mw(answer: str) -> dict[str, float]:
    """Return mW by rail; current and voltage pair by name, never by index.

    >>> rails_mw("VDD_CORE_A current(7)=2.0A VDD_CORE_V volt(15)=0.9V EXT5V_V volt(24)=5.1V")
    {'VDD_CORE': 1800.0}
    """
    values = {(name, unit): float(value) for name, unit, value in _LINE.findall(answer)}
    return {
        name: current * values[name, "V"] * 1000
        for (name, unit), current in values.items()
        if unit == "A" and (name, "V") in values
    }


def _read(root: Path) -> float:
    rails = rails_mw(vcgencmd.ask(root, "pmic_read_adc") or "")
    if not rails:
        raise Unavailable("vcgencmd pmic_read_adc: no rails in the answer")
    return sum(rails.values())
