"""A battery's own gauge: voltage times current, slow and coarse, and only while it discharges."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import is_simulated, number, read_text, readable
from edgepress_agent.sensors import Source

_RATE_HZ = 1.0


def detect(root: Path) -> Source | None:
    """Take the first battery that tells voltage and current and feeds the board, not a mouse."""
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        feeds_the_board = read_text(supply / "type") == "Battery" and read_text(supply / "scope") != "Device"
        if feeds_the_board and all(readable(supply / name) for name in ("voltage_now", "current_now")):
            sensor = Sensor("battery", "power", "battery", is_simulated(root))
            return Source(sensor, partial(_read_mw, supply), _RATE_HZ)
    return None


def _read_mw(supply: Path) -> float:
    if read_text(supply / "status") != "Discharging":
        raise Unavailable(f"{supply}: it does not discharge, so that its current is not the board's")
    # Drivers disagree about the sign of a discharge.
    return number(supply / "voltage_now") * abs(number(supply / "current_now")) / 1e9
