"""Over-current events of Jetson Orin: how often the hardware has throttled; the difference counts."""

from __future__ import annotations

from pathlib import Path

from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import hwmon, is_simulated, number, readable
from edgepress_agent.sensors import Source

_RATE_HZ = 1.0


def detect(root: Path) -> Source | None:
    """Add up the counters of the chip."""
    counters = [
        path for chip in hwmon(root, "soctherm_oc") for path in sorted(chip.glob("oc[1-9]_event_cnt")) if readable(path)
    ]
    if not counters:
        return None
    sensor = Sensor("soctherm-oc", "throttling", "board", is_simulated(root))
    return Source(sensor, lambda: sum(number(path) for path in counters), _RATE_HZ)
