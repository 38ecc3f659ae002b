"""From what the child timed to what a measurement says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from statistics import median

from edgepress_protocol.histogram import Histogram
from edgepress_protocol.measurement import AtThreads, Latency, Paced, Soak, Stretch, Usage

from edgepress_agent.measure.conditions import Snapshot, throttled, throttling
from edgepress_agent.measure.pipe import Timed, TimedPaced, Worked

UNSTABLE = 0.05
"""Windows whose medians spread by more than this share of their median are measured once more, then marked."""

MINUTE_S = 60.0
SETTLED_CELSIUS = 1.0
"""A board whose temperature moves by less than this over the last part of a long load has settled."""


def latency(timed: Timed) -> Latency:
    """Headline and percentiles, as `Latency` defines them."""
    medians = [window.p50_ms for window in timed.windows]
    middle = median(medians)
    slowest_ms = timed.max_ns / 1e6
    p90_ms, p95_ms, p99_ms = percentiles_ms(timed.histogram, (90, 95, 99), slowest_ms)
    spread = (max(medians) - min(medians)) / middle if middle > 0 else 0.0
    return Latency(
        p50_ms=middle,
        p90_ms=p90_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        min_ms=timed.min_ns / 1e6,
        max_ms=slowest_ms,
        runs=timed.histogram.total,
        spread=spread,
        unstable=spread > UNSTABLE,
        windows=timed.windows,
        histogram=timed.histogram,
    )


def paced(timed: TimedPaced, rate_hz: float) -> Paced:
    """Percentiles of paced runs; the median is exact."""
    slowest_ms = timed.max_ns / 1e6
    p90_ms, p95_ms, p99_ms = percentiles_ms(timed.histogram, (90, 95, 99), slowest_ms)
    return Paced(
        rate_hz=rate_hz,
        runs=timed.histogram.total,
        late=timed.late,
        p50_ms=timed.median_ns / 1e6,
        p90_ms=p90_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        max_ms=slowest_ms,
        histogram=timed.histogram,
    )


def usage(worked: Worked) -> Usage:
    """Cost of one inference, over a stretch of untimed ones."""
    return Usage(worked.runs, worked.cpu_ns / 1e6 / worked.runs, worked.minor_faults, worked.major_faults)


def at_threads(threads: int, timed: Timed) -> AtThreads:
    """One point of a sweep over numbers of threads."""
    found = latency(timed)
    return AtThreads(threads, found.p50_ms, found.p95_ms, found.spread, found.runs)


def percentiles_ms(histogram: Histogram, percents: Sequence[float], slowest_ms: float) -> list[float]:
    """Percentiles of a histogram; the middle of a bucket may lie above its slowest run, a percentile may not."""
    return [min(histogram.percentile_ms(percent), slowest_ms) for percent in percents]


def soak(slices: Sequence[tuple[Timed, Snapshot]], before: Snapshot) -> Soak:
    """Split a long load, in slices with the board `before` it and at the end of each, into its first part and its last.

    Either part is a minute long, or half of the load where that is shorter.
    """
    lengths_s = [timed.windows[0].duration_s for timed, _ in slices]
    count = max(1, round(min(MINUTE_S, sum(lengths_s) / 2) / (sum(lengths_s) / len(slices))))
    last = slices[-count:]
    warm = [shot.conditions.temperature_celsius for _, shot in last]
    known = [celsius for celsius in warm if celsius is not None]
    return Soak(
        seconds=sum(lengths_s),
        first=_stretch(slices[:count]),
        steady=_stretch(last),
        settled=max(known) - min(known) < SETTLED_CELSIUS if len(known) == len(warm) else None,
        throttled=any(throttled(before, shot) or throttling(shot) for _, shot in slices),
        slice_s=max(lengths_s),
        p50_ms=tuple(timed.windows[0].p50_ms for timed, _ in slices),
        celsius_at_start=before.conditions.temperature_celsius,
    )


def _stretch(slices: Sequence[tuple[Timed, Snapshot]]) -> Stretch:
    histogram = reduce(Histogram.merge, (timed.histogram for timed, _ in slices))
    slowest_ms = max(timed.max_ns for timed, _ in slices) / 1e6
    p50_ms, p95_ms, p99_ms = percentiles_ms(histogram, (50, 95, 99), slowest_ms)
    at_end = slices[-1][1].conditions
    return Stretch(
        seconds=sum(timed.windows[0].duration_s for timed, _ in slices),
        runs=histogram.total,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        temperature_celsius=at_end.temperature_celsius,
        frequency_hz=at_end.frequency_hz,
    )
