"""What a child process does to itself: die with its parent, hold its limits, weigh its memory. Linux only."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Memory

from edgepress_agent.board import memory as board_memory

_PR_SET_PDEATHSIG = 1
_RESET_PEAK = b"5"
"""Written to clear_refs, it sets VmHWM to the present RSS (proc(5))."""

_OTHER_THREADS = 8
_STACK_BYTES, _ARENA_BYTES = 8 * 1024 * 1024, 64 * 1024 * 1024
"""What glibc reserves for each thread: its stack, and a heap of its own."""


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have gone before the line above.
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def be_first_to_go() -> None:
    """When the board runs out of memory, the model's process is to be killed, never the agent. No core files."""
    with suppress(OSError):  # where /proc is read-only the kernel chooses for itself
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@dataclass(frozen=True)
class Baseline:
    """Memory of the empty runtime: imported, and nothing loaded."""

    rss_bytes: int
    pss_bytes: int | None


def begin_memory(limit_bytes: int | None) -> Baseline:
    """Weigh the empty runtime, start the peak anew from there, and limit the address space above it."""
    forget_peak()
    baseline = Baseline(_status()["VmRSS"], _pss_bytes())
    limit_address_space(limit_bytes)
    return baseline


def limit_address_space(above_bytes: int | None) -> None:
    """Let this process take no more than so much address space above what it has; None lets it take any."""
    if above_bytes is not None:
        limit = _status()["VmSize"] + above_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def allowance_bytes(model: Path, threads: int) -> int | None:
    """Address space that a model may take on this board: a model that asks for more gets an error, not the board.

    It is nine tenths of the memory that could be had now, the file itself, which may be mapped, and what threads
    reserve without using it. None where the kernel does not tell how much memory there is.
    """
    try:
        seen = board_memory.read(Path("/"))
    except Unavailable:
        return None
    if seen.available_bytes is None:
        return None
    available = min(seen.available_bytes, seen.limit_bytes or seen.available_bytes)
    reserved = (threads + _OTHER_THREADS) * (_STACK_BYTES + _ARENA_BYTES)
    return available * 9 // 10 + model.stat().st_size + reserved


def forget_peak() -> None:
    """Start the peak anew from what the process holds now."""
    with suppress(OSError):  # a kernel without it: the peak then counts from the start of the process, never less
        os.write(_clear_refs(), _RESET_PEAK)


@functools.cache
def _clear_refs() -> int:
    """Open it once and keep it: a confined process may no longer open anything of /proc for writing."""
    return os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)


def peak_bytes() -> int:
    """Return the most that this process held since its peak was last forgotten."""
    return _status()["VmHWM"]


def memory(baseline: Baseline, earlier_peak_bytes: int) -> Memory:
    """Weigh this process above its baseline; PSS is None where the kernel does not tell it."""
    peak = max(peak_bytes(), earlier_peak_bytes)
    pss = _pss_bytes()
    return Memory(
        baseline_bytes=baseline.rss_bytes,
        resident_peak_bytes=peak,
        peak_bytes=max(0, peak - baseline.rss_bytes),
        pss_bytes=None if pss is None or baseline.pss_bytes is None else max(0, pss - baseline.pss_bytes),
    )


def _status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) * 1024 for name, value, _ in fields}


def _pss_bytes() -> int | None:
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return None
    found = next((line for line in rollup.read_text().splitlines() if line.startswith("Pss:")), None)
    return None if found is None else int(found.split()[1]) * 1024
