"""The tight loops of a measurement. They run in the child, with nothing else in its process.

Conventions of MLPerf Tiny and TFLite's benchmark_model: warm-up apart, several windows, every run timed.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic_ns, perf_counter_ns

from edgepress_protocol.histogram import Histogram
from edgepress_protocol.measurement import Window

from edgepress_agent.measure.pipe import Timed, Worked

DRIFT = 0.05
"""Warm is when the mean of one stretch differs from that of the stretch before by less than this share."""

MAX_STRETCHES = 12


def warm_up(run: Callable[[], None], runs: int, seconds: float) -> int:
    """Run at least `runs` times and for `seconds`, in stretches, until drift is small; returns the runs made.

    A board that never settles is measured all the same after `MAX_STRETCHES`, and its windows tell. No
    samples are kept, since what memory the model takes is read after this.
    """
    if runs == 0 and seconds == 0:
        return 0
    done = 0
    before: float | None = None
    for stretch in range(MAX_STRETCHES):
        worked = work(run, seconds / 2, at_least=max(1, runs // 2))
        done += worked.runs
        now = (worked.end_ns - worked.start_ns) / worked.runs
        steady = before is not None and abs(now - before) <= DRIFT * before
        if stretch > 0 and done >= runs and steady:
            break
        before = now
    return done


def time_windows(run: Callable[[], None], windows: int, window_s: float) -> Timed:
    """Time every run of `windows` windows of at least `window_s` and one run each."""
    seen: list[Window] = []
    histogram = Histogram()
    lowest, highest = 1 << 62, 0
    for _ in range(windows):
        started = perf_counter_ns()
        samples = sorted(_time(run, window_s, 1))
        duration_s = (perf_counter_ns() - started) / 1e9
        seen.append(Window(len(samples), duration_s, percentile_ms(samples, 50), percentile_ms(samples, 95)))
        histogram = histogram.merge(Histogram.of(samples))
        lowest, highest = min(lowest, samples[0]), max(highest, samples[-1])
    return Timed(tuple(seen), histogram, lowest, highest)


def work(run: Callable[[], None], seconds: float, at_least: int = 1) -> Worked:
    """Run for `seconds`, between two moments of the clock that the agent's sensor samples carry."""
    count = 0
    with _no_collection():
        now = start = monotonic_ns()
        end = start + int(seconds * 1e9)
        while now < end or count < at_least:
            run()
            count += 1
            now = monotonic_ns()
    return Worked(count, start, now)


def percentile_ms(ordered_ns: Sequence[int], percent: float) -> float:
    """Nearest-rank percentile, in ms, of latencies in ascending order.

    >>> percentile_ms([1_000_000, 2_000_000, 3_000_000], 50)
    2.0
    """
    rank = max(1, -(-len(ordered_ns) * percent // 100))
    return ordered_ns[int(rank) - 1] / 1e6


def _time(run: Callable[[], None], seconds: float, at_least: int) -> array[int]:
    samples = array("q")
    with _no_collection():
        now = perf_counter_ns()
        end = now + int(seconds * 1e9)
        while now < end or len(samples) < at_least:
            started = perf_counter_ns()
            run()
            now = perf_counter_ns()
            samples.append(now - started)
    return samples


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collection is not the model's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
