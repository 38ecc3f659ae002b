"""Which power rails make up the total: a parent rail is never added to its children.

Names as the device trees of NVIDIA's L4T give them, JetPack 4 to 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgepress_protocol.errors import Unavailable

TOTALS = (
    ("VDD_IN",),  # TX2, Xavier NX, Orin Nano, Orin NX: the module
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin: VDDQ_VDD2_1V8AO hangs below VIN_SYS_5V0
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier has no parent
)


def total(rails: Mapping[str, Callable[[], float]]) -> Callable[[], float] | None:
    """Return the reading of the whole module in mW, or None where there are no rails.

    Raises:
        Unavailable: nobody described yet which of these rails make the total, or one of those is switched off.
    """
    if not rails:
        return None
    wanted = next((names for names in TOTALS if all(name in rails for name in names)), None)
    if wanted is None:
        seen = ", ".join(sorted(rails))
        raise Unavailable(f"which of the rails {seen} make up the total is not known; a guess would be no measurement")
    parts = [rails[name] for name in wanted]
    return lambda: sum(read() for read in parts)
