"""Statistics of what a model is asked with, on a budget: at most ten looks a second and a hundredth of the time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from edgepress_protocol.manifest import TensorSpec
from edgepress_protocol.served import InputStats

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

_PAUSE_S = 0.1
_SHARE = 0.01
_LARGEST = 1e140
"""Beyond it sums of squares are no numbers; such a value counts as infinite."""


class Looker:
    """Looks at the inputs of a request, when it may, after the request has been answered."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        self._lock = threading.Lock()
        self._next_s = 0.0
        self._found: dict[str, InputStats] = {}

    def look(self, arrays: Sequence[Array]) -> bool:
        """Add one request's inputs, in the order of the specs, if it is time to; returns whether it was."""
        started_s = perf_counter()
        if started_s < self._next_s or not self._lock.acquire(blocking=False):
            return False
        try:
            for array, spec in zip(arrays, self._specs, strict=True):
                seen = statistics(array, spec)
                before = self._found.get(spec.name)
                self._found[spec.name] = seen if before is None else before.merge(seen)
            took_s = perf_counter() - started_s
            self._next_s = started_s + max(_PAUSE_S, took_s / _SHARE)
        finally:
            self._lock.release()
        return True

    def take(self) -> tuple[InputStats, ...]:
        """Return what was seen since the last call."""
        with self._lock:
            found, self._found = self._found, {}
        return tuple(found.values())


def statistics(array: Array, spec: TensorSpec) -> InputStats:
    """Return the statistics of one request's input, in reals where it came as steps of a quantized one."""
    values = array.reshape(-1).astype(np.float64)
    nan_count = infinite_count = 0
    with np.errstate(over="ignore", invalid="ignore"):
        all_usable = array.dtype.kind != "f" or np.isfinite(values.dot(values))
    if not all_usable:
        kept = np.abs(values) <= _LARGEST
        nan_count = int(np.isnan(values).sum())
        infinite_count = values.size - int(kept.sum()) - nan_count
        values = values[kept]
    if not values.size:
        return InputStats(spec.name, 1, nan_count=nan_count, infinite_count=infinite_count)
    mean, std, low, high = (float(f(values)) for f in (np.mean, np.std, np.min, np.max))
    if spec.quantization is not None and array.dtype.name == spec.dtype:
        scale, zero = spec.quantization.scale, spec.quantization.zero_point
        mean, std, low, high = (mean - zero) * scale, std * scale, (low - zero) * scale, (high - zero) * scale
    return InputStats(spec.name, 1, values.size, mean, std, low, high, nan_count, infinite_count)
