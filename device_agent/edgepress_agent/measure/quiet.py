"""How quiet a board is: what others do with its processors, whether it warms or cools, and what bounds its clock.

The load average tells of the last minute, in which the trial before this one ran; so it is recorded, and what decides
is the processor time that others take now.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepress_protocol.measurement import Quiet

from edgepress_agent import sensors
from edgepress_agent.board.load import Load
from edgepress_agent.measure import conditions
from edgepress_agent.measure.conditions import Snapshot
from edgepress_agent.measure.job import Says

CHECK_S = 3.0
"""How long a board is looked at before a trial; no longer than one of the trial's windows."""

BUSY_CORES = 0.5
"""More processor time than this, taken by others, moves latencies: caches, memory and clock are shared."""

MOVING_CELSIUS = 1.0
"""A board that warms or cools by as much in the check has not come to rest: two steps of a Raspberry Pi's sensor."""

REST_CHECKS = 20
"""A board that warms or cools is looked at again so often at most: a minute, by itself."""

COOL_S = 300.0
COOL_CELSIUS = 2.0
"""Before a long load a board may cool for so long, until it is no more than this above what it was before the trial."""


@dataclass(frozen=True)
class Check:
    """A board before a trial: two looks at it, and the processor time that others took between them."""

    first: Snapshot
    last: Snapshot
    seconds: float
    busy_cores: float | None


class Others:
    """Processor time that others take, as a number of cores, from this moment on. A recorded tree has none."""

    def __init__(self, root: Path) -> None:
        self._load = Load(root)
        self._since_ns = time.monotonic_ns()

    def busy_cores(self, own_cpu_ns: int = 0) -> float | None:
        """Cores that were busy since the last call, less what the measured process took; None where nobody can say."""
        now_ns, percent = time.monotonic_ns(), self._load.percent()
        own = own_cpu_ns / max(1, now_ns - self._since_ns)
        self._since_ns = now_ns
        return None if percent is None else max(0.0, percent / 100 * cores() - own)


def cores() -> int:
    """Return the number of cores of this machine, which is what /proc/stat counts."""
    return os.cpu_count() or 1


async def check(board: Sequence[sensors.Source], root: Path, window_s: float) -> Check:
    """Look at the board for a moment in which nothing is measured."""
    others = Others(root)
    started = time.monotonic()
    first = await asyncio.to_thread(conditions.read, board, root)
    await asyncio.sleep(min(CHECK_S, window_s))
    last = await asyncio.to_thread(conditions.read, board, root)
    return Check(first, last, time.monotonic() - started, others.busy_cores())


def longest_rest_s(window_s: float) -> float:
    """How long `at_rest` may take."""
    return REST_CHECKS * min(CHECK_S, window_s)


async def at_rest(board: Sequence[sensors.Source], root: Path, window_s: float, say: Says) -> Check:
    """Look at the board until it neither warms nor cools, but not for ever: `judge` says what is amiss then."""
    seen = await check(board, root, window_s)
    for _ in range(1, REST_CHECKS):
        if not _moves(seen):
            break
        say(f"waiting for the board to come to rest: {_moved(seen)}")
        seen = await check(board, root, window_s)
    return seen


async def cooled(board: Sequence[sensors.Source], root: Path, rest: Snapshot, window_s: float, say: Says) -> Snapshot:
    """Wait until the board is about as cool as it was at `rest`, but not for ever; return its state then."""
    until_s = time.monotonic() + COOL_S
    while True:
        now = await asyncio.to_thread(conditions.read, board, root)
        was, became = rest.conditions.temperature_celsius, now.conditions.temperature_celsius
        if was is None or became is None or became <= was + COOL_CELSIUS or time.monotonic() >= until_s:
            return now
        say(f"waiting for the board to cool before the long load: {became:.1f} °C, it was {was:.1f} °C")
        await asyncio.sleep(min(CHECK_S, window_s))


def judge(before: Check, after: Snapshot, busy_cores: float | None, *, attempts: int) -> Quiet:
    """Put together what was seen before and while a trial was timed, and say what was amiss."""
    said = (*_before(before), *_while(before.last, after, busy_cores))
    change = _change(before)
    return Quiet(
        busy_cores_before=before.busy_cores,
        busy_cores=busy_cores,
        celsius_per_minute=None if change is None or before.seconds <= 0 else change / before.seconds * 60,
        power_mode=after.power_mode,
        attempts=attempts,
        disturbed=said,
    )


def _before(seen: Check) -> list[str]:
    said = []
    if seen.busy_cores is not None and seen.busy_cores >= BUSY_CORES:
        said.append(f"before it others kept {seen.busy_cores:.1f} of {cores()} cores busy")
    if _moves(seen):
        said.append(f"before it {_moved(seen)}")
    if line := conditions.throttling(seen.last):
        said.append(f"before it {line}")
    return said


def _while(before: Snapshot, after: Snapshot, busy_cores: float | None) -> list[str]:
    said = []
    if busy_cores is not None and busy_cores >= BUSY_CORES:
        said.append(f"others kept {busy_cores:.1f} of {cores()} cores busy")
    if line := conditions.throttled(before, after):
        said.append(line)
    for what, was, became in (
        ("governor", before.conditions.governor, after.conditions.governor),
        ("power mode", before.power_mode, after.power_mode),
    ):
        if was != became and became is not None:
            said.append(f"the {what} went from {was} to {became}")
    return said


def _moves(seen: Check) -> bool:
    return abs(_change(seen) or 0.0) >= MOVING_CELSIUS


def _moved(seen: Check) -> str:
    change = _change(seen) or 0.0
    return f"the board {'warmed' if change > 0 else 'cooled'} by {abs(change):.1f} °C"


def _change(seen: Check) -> float | None:
    was, became = seen.first.conditions.temperature_celsius, seen.last.conditions.temperature_celsius
    return None if was is None or became is None else became - was
