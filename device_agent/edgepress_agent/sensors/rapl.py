"""Intel's and AMD's RAPL: energy counters of the processor packages in µJ, which wrap.

Only root may read them unless a udev rule says otherwise.
"""

from __future__ import annotations

from pathlib import Path

from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import is_simulated, number, read_text, thousandths
from edgepress_agent.sensors import Source

_RATE_HZ = 10.0


def detect(root: Path) -> Source | None:
    """Take the first package. Its subdomains (core, dram) are parts of it or not the package's."""
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:?")):
        if (read_text(zone / "name") or "").startswith("package"):
            counter, wraps_at_mj = zone / "energy_uj", number(zone / "max_energy_range_uj") / 1000
            number(counter)
            sensor = Sensor("rapl", "power", "package", is_simulated(root))
            return Source(sensor, thousandths(counter), _RATE_HZ, wraps_at_mj)
    return None
