"""MAIN PATH of what the agent sees of its board: its inventory for the host, and all of it for a person.

Read from /proc, /sys and the device tree, below a root that may be a recorded tree.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Board, Device, Sensor
from edgepress_protocol.version import SPOKEN

from edgepress_agent import installed, runtimes, sensors
from edgepress_agent.board import cpufreq, identity, memory, proc
from edgepress_agent.board.emulation import emulated
from edgepress_agent.board.sysfs import is_simulated, one_line, read_text

T = TypeVar("T")
_MAX_MODEL = 120


class Reading(msgspec.Struct, frozen=True):
    """A sensor and what it says now: `value` is in `unit`, or None with the trouble in words."""

    sensor: Sensor
    unit: str
    value: float | None = None
    trouble: str = ""


class Clock(msgspec.Struct, frozen=True):
    """The processor's clock and what bounds it; what the board does not have is None."""

    governor: str | None
    frequency_hz: int | None
    power_mode: str | None


class MemorySeen(msgspec.Struct, frozen=True):
    """Memory of the machine, and the limit of the control group that the agent is in.

    `grouped` is False where no group accounts for it, as on Raspberry Pi OS with `cgroup_disable=memory`: a model's
    memory is then read from VmHWM and PSS alone, and limited by its address space.
    """

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None
    grouped: bool


class Seen(msgspec.Struct, frozen=True):
    """Everything that `edgepress-agent probe` tells."""

    device: Device
    emulated: bool
    clock: Clock
    memory: MemorySeen
    readings: tuple[Reading, ...]
    troubles: tuple[str, ...]


def inventory(root: Path, *, device_id: str, state_dir: Path) -> Device:
    """Describe this device to the host. Whatever a recorded tree lacks is read from the machine that runs it.

    Raises:
        Unavailable: a file that is always there cannot be read.
    """
    return Device(
        id=device_id,
        board=board(root),
        agent_version=installed.version("edgepress") or "unknown",
        speaks=SPOKEN,
        runtimes=runtimes.installed(),
        sensors=tuple(source.sensor for source in sensors.found(root)),
        free_disk_bytes=shutil.disk_usage(state_dir).free,
    )


def see(root: Path, *, device_id: str, state_dir: Path) -> Seen:
    """Take the inventory and read every sensor and clock once; what fails is a line, not an error.

    Raises:
        Unavailable: a file that is always there cannot be read.
    """
    troubles: list[str] = []

    def told(reading: Callable[[Path], T]) -> T | None:
        try:
            return reading(root)
        except Unavailable as error:
            troubles.append(str(error))
            return None

    has = told(memory.read) or memory.Memory(None, None, None, grouped=False)
    return Seen(
        device=inventory(root, device_id=device_id, state_dir=state_dir),
        emulated=emulated(),
        clock=Clock(told(cpufreq.governor), told(cpufreq.frequency_hz), told(cpufreq.power_mode)),
        memory=MemorySeen(has.total_bytes, has.available_bytes, has.limit_bytes, has.grouped),
        readings=tuple(_reading(source) for source in sensors.found(root)),
        troubles=(*troubles, *sensors.look(root).troubles),
    )


def board(root: Path) -> Board:
    """Tell the kind of board, its processor and its memory.

    Raises:
        Unavailable: a file that is always there cannot be read.
    """
    compatible = _lines(read_text(root / "proc/device-tree/compatible"))
    cpuinfo = _text(root, "proc/cpuinfo")
    arch = "aarch64" if is_simulated(root) and compatible else platform.machine()
    total_bytes = proc.meminfo(root).get("MemTotal") or proc.meminfo(Path("/")).get("MemTotal")
    if total_bytes is None:
        raise Unavailable(f"{root / 'proc/meminfo'}: no MemTotal: how much memory this board has is not known")
    return Board(
        kind=identity.kind(compatible, arch),
        model=_model(root, arch),
        arch=arch,
        cpu=one_line(identity.cpu(cpuinfo), _MAX_MODEL) or arch,
        cores=identity.cores(cpuinfo) or os.cpu_count() or 1,
        memory_bytes=total_bytes,
        os=_os(_text(root, "etc/os-release")),
        python=platform.python_version(),
        simulated=is_simulated(root),
    )


def _reading(source: sensors.Source) -> Reading:
    unit = _unit(source)
    try:
        return Reading(source.sensor, unit, round(source.read(), 3))
    except Unavailable as error:
        return Reading(source.sensor, unit, trouble=str(error))


def _unit(source: sensors.Source) -> str:
    if source.sensor.quantity == "power":
        return "mW" if source.wraps_at_mj is None else "mJ"
    if source.sensor.quantity == "temperature":
        return "°C"
    return "bits" if source.sensor.name == "pi-throttled" else "events"


def _text(root: Path, path: str) -> str:
    return read_text(root / path) or read_text(Path("/") / path) or ""


def _lines(text: str | None) -> list[str]:
    return [] if text is None else [part for part in text.split("\0") if part]


def _model(root: Path, arch: str) -> str:
    named = read_text(root / "proc/device-tree/model") or read_text(root / "sys/class/dmi/id/product_name")
    return one_line(named or "", _MAX_MODEL) or f"unnamed {arch} machine"


def _os(release: str) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', release, re.MULTILINE)
    return (found and one_line(found[1], _MAX_MODEL)) or platform.system()
