"""What /proc tells of a machine as a whole. A line that is not there is None, one that makes no sense an error."""

from __future__ import annotations

import math
import re
from pathlib import Path

from edgepress_protocol.errors import Unavailable

from edgepress_agent.board.sysfs import read_text

_MEMINFO = re.compile(r"^(\w+):[ \t]+([0-9]{1,15}) kB[ \t]*$", re.MULTILINE | re.ASCII)


def meminfo(root: Path) -> dict[str, int]:
    """Return the fields of /proc/meminfo in bytes; those that are no amount of kB are left out.

    Raises:
        Unavailable: it is there and cannot be read.
    """
    return {name: int(kib) * 1024 for name, kib in _MEMINFO.findall(read_text(root / "proc/meminfo") or "")}


def uptime_s(root: Path) -> float | None:
    """Seconds since the machine started.

    Raises:
        Unavailable: it cannot be read, or holds no number.
    """
    return _first(root / "proc/uptime")


def load_1min(root: Path) -> float | None:
    """Mean number of tasks that wanted a processor in the last minute.

    Raises:
        Unavailable: it cannot be read, or holds no number.
    """
    return _first(root / "proc/loadavg")


def _first(path: Path) -> float | None:
    text = read_text(path)
    if text is None:
        return None
    word = text.partition(" ")[0]
    try:
        value = float(word) if word.isascii() else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e12:
        raise Unavailable(f"{path}: expected a number first, found {word[:40]!r}")
    return value
