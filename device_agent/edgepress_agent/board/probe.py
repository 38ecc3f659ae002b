"""What board is this: read from /proc, /sys and the device tree, below a root that may be a recorded tree."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from pathlib import Path

from edgepress_protocol.measurement import Board, Device
from edgepress_protocol.version import SPOKEN

from edgepress_agent import runtimes, sensors
from edgepress_agent.board.sysfs import is_simulated, read_text

_KINDS = (
    ("raspberrypi,5-model-b", "raspberry-pi-5"),
    ("raspberrypi,4-model-b", "raspberry-pi-4"),
    ("raspberrypi,3-model-b-plus", "raspberry-pi-3b-plus"),
    ("raspberrypi,3-model-b", "raspberry-pi-3b"),
    ("raspberrypi,model-zero-2-w", "raspberry-pi-zero-2-w"),
    ("nvidia,p3701", "jetson-agx-orin"),
    ("nvidia,p3767-0000", "jetson-orin-nx"),
    ("nvidia,p3767-0001", "jetson-orin-nx"),
    ("nvidia,p3767", "jetson-orin-nano"),
    ("nvidia,p3668", "jetson-xavier-nx"),
    ("nvidia,p2888", "jetson-agx-xavier"),
    ("nvidia,p3310", "jetson-tx2"),
    ("nvidia,p3448", "jetson-nano"),
)
"""Start of a `compatible` string of the device tree, and the kind; a Jetson's module decides, not its carrier."""

_ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
}
_NVIDIA_CORES = {"0x003": "Denver 2", "0x004": "Carmel"}


def inventory(root: Path, *, device_id: str, state_dir: Path) -> Device:
    """Describe this device to the host. Whatever a recorded tree lacks is read from the machine that runs it."""
    return Device(
        id=device_id,
        board=board(root),
        agent_version=importlib.metadata.version("edgepress"),
        speaks=SPOKEN,
        runtimes=runtimes.installed(),
        sensors=tuple(source.sensor for source in sensors.found(root)),
        free_disk_bytes=shutil.disk_usage(state_dir).free,
    )


def board(root: Path) -> Board:
    """Tell the kind of board, its processor and its memory."""
    compatible = _lines(read_text(root / "proc/device-tree/compatible"))
    cpuinfo = _text(root, "proc/cpuinfo")
    arch = "aarch64" if is_simulated(root) and compatible else platform.machine()
    return Board(
        kind=kind(compatible, arch),
        model=_model(root, arch),
        arch=arch,
        cpu=_cpu(cpuinfo) or arch,
        cores=len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or os.cpu_count() or 1,
        memory_bytes=_memory_bytes(_text(root, "proc/meminfo")),
        os=_os(_text(root, "etc/os-release")),
        python=platform.python_version(),
        simulated=is_simulated(root),
    )


def kind(compatible: list[str], arch: str) -> str:
    """Name the kind of board from the device tree's `compatible` strings, most specific first.

    >>> kind(["radxa,rock-5b", "rockchip,rk3588"], "aarch64")
    'radxa-rock-5b'
    """
    # A Jetson's first string names carrier and module ("p3768-0000+p3767-0005-super"): the module is what computes.
    words = [f"nvidia,{part.split('+')[-1].removeprefix('nvidia,')}" if "+" in part else part for part in compatible]
    for start, name in _KINDS:
        if any(word.startswith(start) for word in words):
            return name
    return re.sub(r"[^A-Za-z0-9.]+", "-", compatible[0]) if compatible else arch


def describe(device: Device) -> str:
    """Render an inventory for a person."""
    board = device.board
    mark = " (simulated: read from a recorded tree)" if board.simulated else ""
    disk = "unknown" if device.free_disk_bytes is None else _size(device.free_disk_bytes)
    rows = [
        ("board", f"{board.kind}{mark}"),
        ("model", board.model),
        ("processor", f"{board.cores} cores, {board.cpu}, {board.arch}"),
        ("memory", _size(board.memory_bytes)),
        ("free disk", disk),
        ("system", f"{board.os}, Python {board.python}"),
        ("agent", f"edgepress {device.agent_version}, protocol {device.speaks[0]} to {device.speaks[1]}"),
        *_rows("runtime", [f"{each.format}: {each.name} {each.version}" for each in device.runtimes]),
        *_rows("sensor", [f"{each.quantity}: {each.name} ({each.scope})" for each in device.sensors]),
    ]
    return "\n".join(f"{label:<10} {value}".rstrip() for label, value in rows)


def _rows(label: str, values: list[str]) -> list[tuple[str, str]]:
    return [(label if i == 0 else "", value) for i, value in enumerate(values or ["none"])]


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"


def _text(root: Path, path: str) -> str:
    return read_text(root / path) or read_text(Path("/") / path) or ""


def _lines(text: str | None) -> list[str]:
    return [] if text is None else [part for part in text.split("\0") if part]


def _model(root: Path, arch: str) -> str:
    named = read_text(root / "proc/device-tree/model") or read_text(root / "sys/class/dmi/id/product_name")
    return named or f"unnamed {arch} machine"


def _cpu(cpuinfo: str) -> str:
    name = _field(cpuinfo, "model name")
    if name:
        return name
    implementer, part = _field(cpuinfo, "CPU implementer"), _field(cpuinfo, "CPU part")
    if implementer == "0x4e":
        return _NVIDIA_CORES.get(part, f"NVIDIA {part}")
    return _ARM_CORES.get(part, f"Arm {part}") if part else ""


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _memory_bytes(meminfo: str) -> int:
    total = _field(meminfo, "MemTotal")
    return int(total.split()[0]) * 1024 if total else 0


def _os(release: str) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', release, re.MULTILINE)
    return found[1] if found else platform.system()
