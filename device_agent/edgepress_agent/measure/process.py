"""What a child process does to itself: die with its parent, hold its limits, weigh its memory. Linux only."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgepress_protocol.measurement import Memory

_PR_SET_PDEATHSIG = 1
_RESET_PEAK = "5"
"""Written to clear_refs, it sets VmHWM to the present RSS (proc(5))."""


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
    status = _status()
    if limit_bytes is not None:
        limit = status["VmSize"] + limit_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return Baseline(status["VmRSS"], _pss_bytes())


def forget_peak() -> None:
    """Start the peak anew from what the process holds now."""
    with suppress(OSError):  # a kernel without it: the peak then counts from the start of the process, never less
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


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
