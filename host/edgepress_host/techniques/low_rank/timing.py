"""Does a layer in factors run faster? Timed in ONNX Runtime, one thread, in turns with the layer itself."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import numpy as np
from torch import nn

from edgepress_host import exporters
from edgepress_host.evaluate import OnnxRunner

_TURNS = 31
_TURN_S = 1e-3
"""Least length of a turn, so that the clock's own jitter does not count."""


def times_as_long(layer: nn.Module, factors: nn.Module, shapes: Sequence[tuple[int, ...]]) -> float:
    """Return the median of (factors' time / layer's time) over turns, on noise of the layer's own input shapes."""
    ratios = [_ratio(layer, factors, _input(layer, shape)) for shape in dict.fromkeys(shapes)]
    return math.fsum(ratios) / len(ratios)


def _input(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(layer, nn.Linear):
        shape = (math.prod(shape[:-1]), shape[-1])
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _ratio(layer: nn.Module, factors: nn.Module, x: np.ndarray) -> float:
    export = exporters.get("onnx").export
    # The example has two rows, lest the exporter fix their number.
    example = np.concatenate([x, x])[: max(2, len(x))]
    runners = [OnnxRunner(export(module, example)) for module in (layer, factors)]
    runs = max(1, math.ceil(_TURN_S / max(1e-9, min(_seconds(runner, x, 2) for runner in runners))))
    turns = [[_seconds(runner, x, runs) for runner in runners] for _ in range(_TURNS)]
    return statistics.median(theirs / own for own, theirs in turns)


def _seconds(runner: OnnxRunner, x: np.ndarray, runs: int) -> float:
    """Return the seconds of one run, as the mean of `runs`.

    Of this thread's processor time, in which all of the run takes place: what else the machine does does not count.
    """
    started = time.thread_time()
    for _ in range(runs):
        runner.run(x)
    return (time.thread_time() - started) / runs
