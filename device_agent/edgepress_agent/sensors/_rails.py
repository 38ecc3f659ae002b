"""Which power rails make up the total: a parent rail is never added to its children."""

from __future__ import annotations

from collections.abc import Callable, Mapping

TOTALS = (
    ("VDD_IN",),  # TX2, Xavier NX, Orin Nano, Orin NX: the module
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin: VDDQ_VDD2_1V8AO hangs below VIN_SYS_5V0
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier has no parent
)


def total(rails: Mapping[str, Callable[[], float]]) -> Callable[[], float] | None:
    """Return the reading of the whole module in mW, or None for a set of rails that nobody described yet."""
    wanted = next((names for names in TOTALS if all(name in rails for name in names)), None)
    if wanted is None:
        return None
    parts = [rails[name] for name in wanted]
    return lambda: sum(read() for read in parts)
