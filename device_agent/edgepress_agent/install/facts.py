"""What the root that is installed into shows: its groups and devices, and how the agent is started there."""

from __future__ import annotations

import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from edgepress_protocol.errors import UsageError

from edgepress_agent.board import gpu

_DEVICES = (
    # Pattern below /dev, the group that owns such nodes, as Raspberry Pi OS sets them up.
    ("vcio_gencmd", "video"),  # the Pi, on newer systems
    ("vcio", "video"),  # the Pi's firmware: throttling, and the PMIC of the Pi 5
    ("vchiq", "video"),  # the same, for the vcgencmd of older systems
    ("i2c-*", "i2c"),
    *gpu.NODES,
)
_RAPL = "sys/class/powercap/intel-rapl:0"


@dataclass(frozen=True)
class Facts:
    """`devices` is None where the root has no /dev to look at, as that of an image."""

    program: str
    groups: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = ()
    rapl: bool = False
    live: bool = False
    configured: bool = False
    installed: bool = False


def facts(root: Path, program: str, *, config: Path, unit: Path) -> Facts:
    """Look at a root; `live` is the machine's own while systemd runs it."""
    present = {line.split(":", 1)[0] for line in _lines(root / "etc/group")}
    seen = (root / "dev/null").exists()
    found = [
        (_below(root, node), group)
        for pattern, group in _DEVICES
        for node in sorted((root / "dev").glob(pattern))
        if not node.is_dir()
    ]
    wanted = {group for _, group in (found if seen else _DEVICES)}
    return Facts(
        program=program,
        groups=tuple(sorted(wanted & present)),
        devices=tuple(path for path, _ in found) if seen else None,
        rapl=(root / _RAPL).exists(),
        live=root == Path("/") and (root / "run/systemd/system").exists(),
        configured=under(root, config).exists(),
        installed=under(root, unit).exists(),
    )


def this_program() -> str:
    """Return the command line by which this very agent is started."""
    script = Path(sys.prefix) / "bin" / "edgepress-agent"
    return str(script) if script.exists() else f"{sys.executable} -m edgepress_agent"


def check_reachable(program: str) -> None:
    """Refuse an agent that a user of its own could not start, one in a home folder as a rule.

    Raises:
        UsageError: a folder on the way to it is closed to others.
    """
    start = Path(program.split(" ", 1)[0])
    for path in {start, start.resolve(), Path(sys.executable).resolve(), Path(__file__).resolve()}:
        for folder in path.parents:
            try:
                closed = not folder.stat().st_mode & stat.S_IXOTH
            except OSError:
                closed = True
            if closed:
                raise UsageError(
                    f"the agent needs {path}, and other users cannot enter {folder}; make its environment where they"
                    " can, of a Python that they may start: /usr/bin/python3 -m venv /opt/edgepress"
                )


def group_id(root: Path, name: str) -> int | None:
    """Return the number of a group of the root; None where there is none."""
    for line in _lines(root / "etc/group"):
        fields = line.split(":")
        if fields[0] == name and len(fields) > 2 and fields[2].isdecimal():
            return int(fields[2])
    return None


def host_name(root: Path) -> str:
    """Return the board's name, as a device's name may be written."""
    names = _lines(root / "etc/hostname")
    return re.sub(r"[^A-Za-z0-9_-]+", "-", names[0]).strip("-")[:64] if names else ""


def under(root: Path, path: Path) -> Path:
    """Return an absolute path as one below a root."""
    return root / path.relative_to("/")


def _below(root: Path, path: Path) -> str:
    return f"/{path.relative_to(root)}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return []
