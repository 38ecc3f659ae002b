"""The tight loops of a measurement. They run in the child, with nothing else in its process.

Conventions of MLPerf Tiny and TFLite's benchmark_model: warm-up apart, several windows, every run timed.
What a loop calls may return anything: nobody looks at it.
"""

from __future__ import annotations

import gc
import resource
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic_ns, perf_counter_ns, process_time_ns, sleep

from edgepress_protocol.histogram import Histogram
from edgepress_protocol.measurement import Window

from edgepress_agent.measure.pipe import Timed, TimedPaced, Worked

DRIFT = 0.05
"""Warm is when the mean of one stretch differs from that of the stretch before by less than this share."""

MAX_STRETCHES = 12

MIN_BEATS = 5
"""A paced latency is of so many beats at least, however short a window is."""


def warm_up(run: Callable[[], object], runs: int, seconds: float) -> int:
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


def time_windows(run: Callable[[], object], windows: int, window_s: float) -> Timed:
    """Time every run of `windows` windows of at least `window_s` and one run each."""
    seen: list[Window] = []
    histogram = Histogram()
    lowest, highest, cpu_ns = 1 << 62, 0, 0
    for _ in range(windows):
        started, used_ns = perf_counter_ns(), process_time_ns()
        samples = sorted(_time(run, window_s, 1))
        duration_s = (perf_counter_ns() - started) / 1e9
        cpu_ns += process_time_ns() - used_ns
        seen.append(Window(len(samples), duration_s, percentile_ms(samples, 50), percentile_ms(samples, 95)))
        histogram = histogram.merge(Histogram.of(samples))
        lowest, highest = min(lowest, samples[0]), max(highest, samples[-1])
    return Timed(tuple(seen), histogram, lowest, highest, cpu_ns)


def time_paced(run: Callable[[], object], rate_hz: float, seconds: float) -> TimedPaced:
    """Time runs that begin on the beats of a clock; a run that lasts past beats is followed on the next free one.

    Between runs the process sleeps, as one does that waits for a camera: clocks fall and caches cool. How late the
    kernel wakes it is not counted.
    """
    period_ns = round(1e9 / rate_hz)
    beats = max(MIN_BEATS, round(seconds * rate_hz))
    samples, late = array("q"), 0
    with _no_collection():
        beat = perf_counter_ns()
        while len(samples) + late < beats:
            sleep(max(0, beat - perf_counter_ns()) / 1e9)
            started = perf_counter_ns()
            run()
            ended = perf_counter_ns()
            samples.append(ended - started)
            beat += period_ns
            lost = max(0, -(-(ended - beat) // period_ns))
            late += lost
            beat += lost * period_ns
    ordered = sorted(samples)
    return TimedPaced(Histogram.of(ordered), rank(ordered, 50), ordered[-1], late)


def work(run: Callable[[], object], seconds: float, at_least: int = 1) -> Worked:
    """Run for `seconds`, between two moments of the clock that the agent's sensor samples carry.

    Nothing is kept of a run, so that the page faults are the model's.
    """
    count = 0
    with _no_collection():
        before, used_ns = resource.getrusage(resource.RUSAGE_SELF), process_time_ns()
        now = start = monotonic_ns()
        end = start + int(seconds * 1e9)
        while now < end or count < at_least:
            run()
            count += 1
            now = monotonic_ns()
        used_ns = process_time_ns() - used_ns
        after = resource.getrusage(resource.RUSAGE_SELF)
    minor, major = after.ru_minflt - before.ru_minflt, after.ru_majflt - before.ru_majflt
    return Worked(count, start, now, used_ns, minor, major)


def percentile_ms(ordered_ns: Sequence[int], percent: float) -> float:
    """Nearest-rank percentile, in ms, of latencies in ascending order.

    >>> percentile_ms([1_000_000, 2_000_000, 3_000_000], 50)
    2.0
    """
    return rank(ordered_ns, percent) / 1e6


def rank(ordered_ns: Sequence[int], percent: float) -> int:
    """Nearest-rank percentile of values in ascending order."""
    return ordered_ns[int(max(1, -(-len(ordered_ns) * percent // 100))) - 1]


def _time(run: Callable[[], object], seconds: float, at_least: int) -> array[int]:
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
