"""Intel's and AMD's RAPL: the energy counter of the processor package in µJ, which wraps.

Only root may read it unless a udev rule says otherwise.
"""

from __future__ import annotations

from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

from edgepress_agent.board.sysfs import is_simulated, number, read_text, thousandths
from edgepress_agent.sensors import Source

_RATE_HZ = 1 / 60
"""What was used between two moments is their difference: it is read at both, and need not be between them."""


def detect(root: Path) -> Source | None:
    """Take the package. Its subdomains (core, dram) are parts of it or not the package's.

    Raises:
        Unavailable: there are several packages, or the counter may not be read.
    """
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:?"))
    packages = [zone for zone in zones if (read_text(zone / "name") or "").startswith("package")]
    if len(packages) > 1:
        raise Unavailable(f"{len(packages)} packages, each of which sees its own part: more than one is not added up")
    if not packages:
        return None
    wraps_at_mj = number(packages[0] / "max_energy_range_uj") / 1000
    if wraps_at_mj <= 0:
        raise Unavailable(f"{packages[0] / 'max_energy_range_uj'}: where the counter wraps must be above 0")
    read = thousandths(packages[0] / "energy_uj")
    try:
        read()
    except Unavailable as error:
        raise Unavailable(f"{error}; where it is root's alone, edgepress-agent install writes the udev rule") from error
    return Source(Sensor("rapl", "power", "package", is_simulated(root)), read, _RATE_HZ, wraps_at_mj)
