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
    """Latency of one sample, in ms, in each round."""

    rounds_ms: tuple[float, ...]

    @property
    def ms(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rounds_ms)

    def faster(self, than: Timed) -> str:
        """How many times faster than another of the same run, round by round: median (10th to 90th percentile)."""
        ratios = [other / own for other, own in zip(than.rounds_ms, self.rounds_ms, strict=True)]
        tenths = statistics.quantiles(ratios, n=10)
        return f"{statistics.median(ratios):.2f} × ({tenths[0]:.2f}–{tenths[-1]:.2f})"


def interleaved(files: Sequence[tuple[str, bytes]], sample: np.ndarray) -> list[Timed]:
    """Time files (format, content) in turns on one sample (1, …)."""
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
    return [Timed(tuple(found)) for found in times]


def _time(run, stored: np.ndarray, count: int) -> float:  # type: ignore[no-untyped-def] # a bound method of a runner
    started = perf_counter_ns()
    for _ in range(count):
        run(stored)
    return (perf_counter_ns() - started) / 1e6 / count
