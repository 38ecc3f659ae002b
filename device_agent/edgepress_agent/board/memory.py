"""How much memory there is: the machine's, and what a control group leaves of it to the agent and its children.

Raspberry Pi OS boots with `cgroup_disable=memory`, so that the files of a memory group may be missing altogether.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepress_protocol.errors import Unavailable

from edgepress_agent.board import proc
from edgepress_agent.board.sysfs import read_text

_CGROUP = "sys/fs/cgroup"
_V1_CONTROLLER = "memory"
_LIMIT = re.compile(r"max|[0-9]{1,20}", re.ASCII)
"""Version 1 says "no limit" by a number of 63 bits, version 2 by a word."""


@dataclass(frozen=True)
class Memory:
    """In bytes. `limit_bytes` is None where no group limits the agent, `grouped` False where it is in none."""

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None
    grouped: bool


def read(root: Path) -> Memory:
    """Read /proc/meminfo and the memory groups that this process is in.

    Raises:
        Unavailable: one of the files is there and cannot be read.
    """
    fields = proc.meminfo(root)
    total_bytes = fields.get("MemTotal")
    limits = list(_limits_bytes(root))
    limit_bytes = min((limit for limit in limits if limit is not None), default=None)
    if limit_bytes is not None and total_bytes is not None and limit_bytes >= total_bytes:
        limit_bytes = None
    return Memory(total_bytes, fields.get("MemAvailable"), limit_bytes, bool(limits))


def used_bytes(root: Path) -> int | None:
    """Memory that could not be had at once.

    Raises:
        Unavailable: it is there and cannot be read.
    """
    fields = proc.meminfo(root)
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    return max(0, fields["MemTotal"] - fields["MemAvailable"])


def _limits_bytes(root: Path) -> Iterator[int | None]:
    """Limits of the agent's group and of those above it; None for a group without one."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield from _upwards(root / _CGROUP, path, "memory.max")
        elif _V1_CONTROLLER in controllers.split(","):
            yield from _upwards(root / _CGROUP / _V1_CONTROLLER, path, "memory.limit_in_bytes")


def _upwards(top: Path, path: str, name: str) -> Iterator[int | None]:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for depth in range(len(parts), -1, -1):
        file = top.joinpath(*parts[:depth], name)
        text = read_text(file)
        if text is None:
            continue
        if not _LIMIT.fullmatch(text):
            raise Unavailable(f"{file}: expected a number of bytes or max, found {text[:40]!r}")
        yield None if text == "max" else int(text)
