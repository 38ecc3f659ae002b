"""INA219, INA226 and kin on a board's supply, through the kernel's ina2xx and ina238 drivers: power in µW."""

from __future__ import annotations

from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import hwmon, is_simulated, read_int, read_name, thousandths
from edgepress_agent.sensors import Source

_CHIPS = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina237", "ina238", "ina260")
_MAX_RATE_HZ = 25.0


def detect(root: Path) -> Source | None:
    """Take the chip; of several nobody says which one is on the board's supply.

    Raises:
        Unavailable: there are several, or the one that is there cannot be read.
    """
    chips = hwmon(root, *_CHIPS)
    if len(chips) > 1:
        names = ", ".join(f"{chip.name} ({read_name(chip / 'name')})" for chip in chips)
        raise Unavailable(f"{len(chips)} power meters, {names}: which one is on the supply is not known")
    if not chips:
        return None
    read = thousandths(chips[0] / "power1_input")
    read()
    sensor = Sensor(read_name(chips[0] / "name") or "ina2xx", "power", "external", is_simulated(root))
    return Source(sensor, read, _rate_hz(chips[0]))


def _rate_hz(chip: Path) -> float:
    """Return how often the chip has something new."""
    interval_ms = read_int(chip / "update_interval") or 0
    return min(_MAX_RATE_HZ, 1000 / interval_ms) if interval_ms > 0 else _MAX_RATE_HZ
