"""INA219, INA226 and kin on a board's supply, through the kernel's ina2xx driver: power in µW."""

from __future__ import annotations

from pathlib import Path

from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import hwmon, is_simulated, read_int, read_text, readable, thousandths
from edgepress_agent.sensors import Source

_MAX_RATE_HZ = 25.0


def detect(root: Path) -> Source | None:
    """Take the first such chip."""
    for chip in hwmon(root, "ina219", "ina220", "ina226", "ina230", "ina231"):
        if readable(chip / "power1_input"):
            sensor = Sensor(read_text(chip / "name") or "ina2xx", "power", "external", is_simulated(root))
            interval_ms = read_int(chip / "update_interval") or 1000 / _MAX_RATE_HZ
            rate_hz = min(_MAX_RATE_HZ, 1000 / interval_ms)
            return Source(sensor, thousandths(chip / "power1_input"), rate_hz)
    return None
