"""A simulated board: its power is known at every moment, its clock jumps, and the real energy protocol reads it."""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from dataclasses import dataclass
from typing import Any

from edgepress_agent import sensors
from edgepress_agent.measure import energy
from edgepress_agent.measure.pipe import Worked
from edgepress_protocol.measurement import Energy, Sensor


@dataclass(frozen=True)
class Board:
    """A board's power in mW: idle, what a load adds, and what is in the way of seeing that.

    It drifts along a straight line and swings; bursts of other work come at random times; the meter is noisy and
    counts in steps, as an INA3221 does.
    """

    idle_mw: float = 2500.0
    load_mw: float = 1500.0
    drift_mw_per_s: float = 0.0
    swing_mw: float = 0.0
    swing_s: float = 40.0
    bursts_per_s: float = 0.0
    burst_mw: float = 600.0
    burst_s: float = 0.3
    noise_mw: float = 20.0
    step_mw: float = 40.0


QUIET = Board()
DRIFTING = Board(drift_mw_per_s=5.0, swing_mw=60.0)
BURSTING = Board(bursts_per_s=0.3)
RESTLESS = Board(drift_mw_per_s=5.0, swing_mw=60.0, bursts_per_s=0.3)
RUN_S = 0.004


def simulate(board: Board, seconds: float, seed: int) -> tuple[Energy, float]:
    """Run the energy protocol on a simulated board; returns what it says, and the truth in mJ per inference."""
    loop = _JumpingLoop()
    scene = _Scene(board, loop, random.Random(seed))
    meter = energy.Meter(_SOURCE, read=scene.read, clock_ns=scene.clock_ns)
    try:
        return loop.run_until_complete(energy.measure(scene.works, meter, seconds, lambda _: None)), scene.truth_mj
    finally:
        loop.close()


_SOURCE = sensors.Source(Sensor("simulated", "power", "module", simulated=True), lambda: math.nan, 25.0)


class _Scene:
    def __init__(self, board: Board, loop: _JumpingLoop, source: random.Random) -> None:
        self._board, self._loop, self._source = board, loop, source
        self._loaded = False
        self._phase = source.uniform(0, 2 * math.pi)
        self._sign = source.choice((-1, 1))
        self._burst_from_s, self._burst_to_s = self._next_burst(0.0)

    @property
    def truth_mj(self) -> float:
        return self._board.load_mw * RUN_S

    def clock_ns(self) -> int:
        return round(self._loop.time() * 1e9)

    async def works(self, seconds: float) -> Worked:
        start_ns = self.clock_ns()
        self._loaded = True
        runs = math.ceil(seconds / RUN_S)
        await asyncio.sleep(runs * RUN_S)
        self._loaded = False
        return Worked(runs, start_ns, self.clock_ns())

    async def read(self, _source: sensors.Source) -> tuple[int, float]:
        """The sensor converts for some milliseconds; the reading counts for their middle."""
        await asyncio.sleep(self._source.uniform(0.001, 0.003))
        at_ns, mw = self.clock_ns(), self._power_mw()
        await asyncio.sleep(self._source.uniform(0.001, 0.003))
        return at_ns, mw

    def _power_mw(self) -> float:
        board, now_s = self._board, self._loop.time()
        while now_s >= self._burst_to_s:
            self._burst_from_s, self._burst_to_s = self._next_burst(self._burst_to_s)
        mw = board.idle_mw + (board.load_mw if self._loaded else 0.0) + self._sign * board.drift_mw_per_s * now_s
        mw += board.swing_mw * math.sin(2 * math.pi * now_s / board.swing_s + self._phase)
        mw += board.burst_mw if now_s >= self._burst_from_s else 0.0
        mw += self._source.gauss(0, board.noise_mw)
        return round(mw / board.step_mw) * board.step_mw

    def _next_burst(self, after_s: float) -> tuple[float, float]:
        if self._board.bursts_per_s == 0:
            return math.inf, math.inf
        start_s = after_s + self._source.expovariate(self._board.bursts_per_s)
        return start_s, start_s + self._source.expovariate(1 / self._board.burst_s)


class _JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now_s


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: _JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing is left that could happen"
        self._loop.now_s += max(0.0, timeout)
        return super().select(0)
