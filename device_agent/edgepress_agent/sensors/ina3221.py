"""INA3221 of Jetson boards through hwmon (JetPack 5 and later): mV and mA per channel, no power file.

A disabled channel answers ENODATA, one that leads nowhere is labelled NC, and channel 7 is a sum of shunts.
Its files are read and never written: `samples` and `update_interval` are the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import hwmon, is_simulated, number, read_int, read_name, readable
from edgepress_agent.sensors import Source
from edgepress_agent.sensors._rails import total

_RATE_HZ = 25.0
"""Three channels convert in about 6.6 ms together, and each read may wait for one."""


def detect(root: Path) -> Source | None:
    """Find the chips and add up the rails that make the total."""
    rails: dict[str, Callable[[], float]] = {}
    for chip in hwmon(root, "ina3221"):
        for channel in (1, 2, 3):
            label = read_name(chip / f"in{channel}_label")
            if label and label != "NC" and _enabled(chip, channel):
                rails[label] = partial(_rail_mw, chip, channel)
    read = total(rails)
    if read is None:
        return None
    return Source(Sensor("ina3221", "power", "module", is_simulated(root)), read, _RATE_HZ)


def _enabled(chip: Path, channel: int) -> bool:
    switch = chip / f"in{channel}_enable"
    return (not readable(switch) or read_int(switch) != 0) and readable(chip / f"curr{channel}_input")


def _rail_mw(chip: Path, channel: int) -> float:
    return number(chip / f"in{channel}_input") * number(chip / f"curr{channel}_input") / 1000
