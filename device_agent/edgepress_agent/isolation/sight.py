"""Which files a confined child may see: the system's and Python's libraries, its model, and a folder of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edgepress_agent.board import gpu
from edgepress_agent.isolation.landlock import DEVICE, LIST, OWN, READ, Allowed
from edgepress_agent.measure.pipe import Confine

# Not /etc, /var, /home, /root, /run: there are keys, passwords and the agent's own state.
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/proc", "/sys"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives"),
)
_OF_GPUS = ("/etc/nv_tegra_release", "/etc/nv_boot_control.conf", "/etc/OpenCL", "/etc/nvidia", "/etc/vulkan")
_DEVICES = ("null", "zero", "full", "random", "urandom")


def paths(plan: Confine, dev: Path = Path("/dev")) -> Iterator[Allowed]:
    """List what may be seen, what is not there included."""
    for folder in _SYSTEM:
        yield Allowed(Path(folder), READ)
    for entry in python_folders():
        yield Allowed(entry, READ)
    for file in plan.files:
        yield Allowed(Path(file), READ)
    for name in _DEVICES:
        yield Allowed(dev / name, DEVICE)
    if plan.gpu:
        yield from (Allowed(Path(path), READ) for path in _OF_GPUS)
        yield from (Allowed(path, DEVICE) for pattern, _ in gpu.NODES for path in sorted(dev.glob(pattern)))
        # Drivers look for their nodes by listing the folders that they are in.
        folders = {parent for pattern, _ in gpu.NODES for parent in Path(pattern).parents} - {Path()}
        yield from (Allowed(path, LIST) for folder in sorted(folders) for path in sorted(dev.glob(str(folder))))
        yield Allowed(dev / "shm", DEVICE)
    yield Allowed(Path(plan.scratch), OWN)


def python_folders() -> list[Path]:
    """Folders of this Python, of what it imports, and of the libraries that its environment names; never `/`."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    entries = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, *libraries}
    folders = (Path(entry).resolve() for entry in sorted(entries) if entry)
    return [folder for folder in folders if folder != Path("/")]
