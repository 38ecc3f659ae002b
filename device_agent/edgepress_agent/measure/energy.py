"""Energy of one inference, net of idle: six interleaved idle/load pairs and a t-interval over them.

Single idle/load windows cover the truth only 35 to 90 % of the time, six pairs 93 to 97 %. Every other pair begins
with its load, so that a power that drifts evenly adds nothing to the mean. The sensor is read here, in the agent's
process: a sampling thread beside the model would perturb it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev
from time import monotonic_ns
from typing import Any

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Energy

from edgepress_agent.measure.pipe import Worked
from edgepress_agent.sensors import Source

PAIRS = 6
MAX_RATE_HZ = 25.0
_T_975 = 2.570582
"""Student's t at 97.5 % for PAIRS - 1 = 5 degrees of freedom."""

Works = Callable[[float], Coroutine[Any, Any, Worked]]
"""Has the child run the model for so many seconds."""


async def _read_in_thread(source: Source) -> tuple[int, float]:
    """Read a sensor and the clock; some sensors take 20 ms, for which the agent does not stand still."""
    return await asyncio.to_thread(_read, source)


async def _never() -> str:
    return ""


@dataclass(frozen=True)
class Meter:
    """A power sensor and what belongs to reading it; all but the sensor is replaced where time is simulated.

    `read` returns (ns, value) on `clock_ns`, the clock of the child's `Worked`. `throttled` says how the board
    throttles, or has since the measurement began; empty where it has not.
    """

    source: Source
    read: Callable[[Source], Awaitable[tuple[int, float]]] = _read_in_thread
    clock_ns: Callable[[], int] = monotonic_ns
    throttled: Callable[[], Awaitable[str]] = _never


@dataclass(frozen=True)
class Pair:
    """One idle stretch and one loaded stretch: mean powers, and the load's length and runs."""

    idle_mw: float
    load_mw: float
    load_s: float
    runs: int

    @property
    def net_mj(self) -> float:
        """Energy of one inference above idle, in mJ."""
        return (self.load_mw - self.idle_mw) * self.load_s / self.runs


@dataclass(frozen=True)
class Power:
    """Mean power over so many seconds."""

    mw: float
    seconds: float


async def measure(works: Works, meter: Meter, seconds: float, on_step: Callable[[str], None]) -> Energy:
    """Read the meter while the child idles and works in turn, `seconds` each.

    Raises:
        Unavailable: the sensor stopped answering.
        Ended: the child died.
    """
    pairs, invalid = [], ""
    for number in range(1, PAIRS + 1):
        stretches: dict[str, tuple[Power, Worked]] = {}
        for kind in ("idle", "load") if number % 2 else ("load", "idle"):
            on_step(f"energy: {kind} {number} of {PAIRS}")
            working = works(seconds) if kind == "load" else _idle(seconds, meter.clock_ns)
            stretches[kind] = await _sample(meter, asyncio.create_task(working))
            if kind == "load":  # at once: an idle board no longer throttles
                invalid = invalid or await meter.throttled()
        load, worked = stretches["load"]
        pairs.append(Pair(stretches["idle"][0].mw, load.mw, load.seconds, max(1, worked.runs)))
    return net_of_idle(pairs, meter.source, invalid)


def net_of_idle(pairs: Sequence[Pair], source: Source, invalid: str = "") -> Energy:
    """Mean and 95 % t-interval over the pairs; no figure where the interval spans zero or the pairs are `invalid`."""
    nets = [pair.net_mj for pair in pairs]
    half = _T_975 * stdev(nets) / math.sqrt(len(nets))
    middle = mean(nets)
    low, high = middle - half, middle + half
    return Energy(
        mj_per_inference=None if invalid or low <= 0 <= high else middle,
        low_mj=low,
        high_mj=high,
        idle_mw=mean(pair.idle_mw for pair in pairs),
        load_mw=mean(pair.load_mw for pair in pairs),
        pairs=len(pairs),
        sensor=source.sensor.name,
        scope=source.sensor.scope,
        simulated=source.sensor.simulated,
        invalid=invalid,
    )


async def _idle(seconds: float, clock_ns: Callable[[], int]) -> Worked:
    start = clock_ns()
    await asyncio.sleep(seconds)
    return Worked(0, start, clock_ns())


async def _sample(meter: Meter, stretch: asyncio.Task[Worked]) -> tuple[Power, Worked]:
    """Read the sensor until the stretch is over and once more; a counter before and after it, and no more."""
    source = meter.source
    period_s = None if source.wraps_at_mj is not None else 1 / min(source.rate_hz, MAX_RATE_HZ)
    readings: list[tuple[int, float]] = []
    try:
        while True:
            readings.append(await meter.read(source))
            if stretch.done():
                break
            await asyncio.wait({stretch}, timeout=period_s)
    finally:
        stretch.cancel()
    worked = await stretch
    if source.wraps_at_mj is not None:
        # The counter saw a little of idling too, at either end: net of idle that adds nothing.
        between_s = (readings[-1][0] - readings[0][0]) / 1e9
        return Power(counted_mw(readings[0], readings[-1], source.wraps_at_mj), between_s), worked
    # The power jumps at either end: a line drawn to a reading beyond it would add half a period of the wrong one.
    inside = [reading for reading in readings if worked.start_ns <= reading[0] <= worked.end_ns]
    mw = trapezoid_mw(inside or readings, worked.start_ns, worked.end_ns)
    return Power(mw, (worked.end_ns - worked.start_ns) / 1e9), worked


def _read(source: Source) -> tuple[int, float]:
    before = monotonic_ns()
    value = source.read()
    return (before + monotonic_ns()) // 2, value


def trapezoid_mw(readings: Sequence[tuple[int, float]], start_ns: int, end_ns: int) -> float:
    """Mean power between two moments, by the trapezoid rule over readings (ns, mW) on the same clock.

    Readings are joined by straight lines, and held level before the first and after the last.

    >>> trapezoid_mw([(0, 100.0), (10, 100.0), (20, 300.0)], 10, 20)
    200.0
    """
    if not readings or end_ns <= start_ns:
        raise Unavailable("the power sensor gave no reading in time")
    inside = [(at, mw) for at, mw in readings if start_ns < at < end_ns]
    points = [(start_ns, _at(readings, start_ns)), *inside, (end_ns, _at(readings, end_ns))]
    area = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in pairwise(points))
    return area / (end_ns - start_ns)


def counted_mw(first: tuple[int, float], last: tuple[int, float], wraps_at_mj: float) -> float:
    """Mean power between two readings (ns, mJ) of a counter that may have wrapped once.

    >>> counted_mw((0, 900.0), (1_000_000_000, 100.0), 1000.0)
    200.0
    """
    return (last[1] - first[1]) % wraps_at_mj / ((last[0] - first[0]) / 1e9)


def _at(readings: Sequence[tuple[int, float]], moment_ns: int) -> float:
    before = [reading for reading in readings if reading[0] <= moment_ns]
    after = [reading for reading in readings if reading[0] >= moment_ns]
    if not before or not after:
        return (after or before)[0 if after else -1][1]
    (a, p), (b, q) = before[-1], after[0]
    return p if a == b else p + (q - p) * (moment_ns - a) / (b - a)
