"""The processor's clock and the power mode that bounds it. Nothing is changed."""

from __future__ import annotations

from pathlib import Path

from edgepress_agent.board.sysfs import read_int, read_name

_CPU = "sys/devices/system/cpu"
_NVPMODEL = "var/lib/nvpmodel/status"


def governor(root: Path) -> str | None:
    """Return the cores' governor, all of them where they differ; None where the kernel scales no clock.

    Raises:
        Unavailable: it is there and cannot be read.
    """
    return ", ".join(sorted({name for core in _cores(root) if (name := read_name(core / "scaling_governor"))})) or None


def frequency_hz(root: Path) -> int | None:
    """Return the fastest core's clock: a tight loop runs there.

    Raises:
        Unavailable: it is there and cannot be read.
    """
    clocks = [read_int(core / "scaling_cur_freq") for core in _cores(root)]
    return max((khz * 1000 for khz in clocks if khz is not None), default=None)


def power_mode(root: Path) -> str | None:
    """Return what a Jetson's nvpmodel was last set to, such as `pmode:0002`; None on other boards.

    Raises:
        Unavailable: it is there and cannot be read.
    """
    return read_name(root / _NVPMODEL)


def _cores(root: Path) -> list[Path]:
    return sorted((root / _CPU).glob("cpu[0-9]*/cpufreq"))
