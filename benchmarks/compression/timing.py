"""Latency of files against each other: interleaved rounds in one process, one thread, one sample at a time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from time import perf_counter_ns

import msgspec
import numpy as np
from edgepress_host import exporters
from edgepress_host.evaluate import open_runner, quantized

ROUNDS = 40
ROUND_MS = 25.0
"""How long each file runs in each round, about."""


class Timed(msgspec.Struct, frozen=True):
    """Median latency of one sample, and how many times faster than the first file, round by round."""

    ms: float
    faster: float
    low: float
    high: float
    """The 10th and the 90th percentile of `faster` over the rounds."""


def interleaved(files: Sequence[tuple[str, bytes]], sample: np.ndarray) -> list[Timed]:
    """Time files (format, content) in turns on one sample (1, …); the others are compared with the first."""
    runs = []
    for format_, content in files:
        stored = quantized(exporters.get(format_).tensors(content)[0][0], sample)
        runner = open_runner(format_, content)
        once = min(_time(runner.run, stored, 3) for _ in range(3))
        runs.append((runner.run, stored, max(1, round(ROUND_MS / once))))
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for found, (run, stored, count) in zip(times, runs, strict=True):
            found.append(_time(run, stored, count))
    results = []
    for found in times:
        ratios = [first / own for first, own in zip(times[0], found, strict=True)]
        tenths = statistics.quantiles(ratios, n=10)
        results.append(Timed(statistics.median(found), statistics.median(ratios), tenths[0], tenths[-1]))
    return results


def _time(run, stored: np.ndarray, count: int) -> float:  # type: ignore[no-untyped-def] # a bound method of a runner
    started = perf_counter_ns()
    for _ in range(count):
        run(stored)
    return (perf_counter_ns() - started) / 1e6 / count
