"""INA3221 of older L4T (JetPack 4: Nano, TX2, Xavier), through NVIDIA's own driver: power per rail in mW.

A Nano of 2 GB has no such chip, and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import is_simulated, number, read_name, readable
from edgepress_agent.sensors import Source
from edgepress_agent.sensors._rails import total

_RATE_HZ = 25.0


def detect(root: Path) -> Source | None:
    """Find the chips and add up the rails that make the total."""
    rails: dict[str, Callable[[], float]] = {}
    for named in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        label = read_name(named)
        power = named.with_name(f"in_power{named.name.rpartition('_')[2]}_input")
        if label and label != "NC" and readable(power):
            rails[label] = partial(number, power)
    read = total(rails)
    if read is None:
        return None
    return Source(Sensor("ina3221x", "power", "module", is_simulated(root)), read, _RATE_HZ)
