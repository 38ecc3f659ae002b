"""Ranges of activations for static quantization, the same for every format.

Two passes over the calibration samples in bounded memory: smallest and largest value first, then a histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

import numpy as np

Method = Literal["minmax", "entropy", "percentile", "mse"]
Range = tuple[float, float]
Activations = Iterable[dict[str, np.ndarray]]

BINS = 8192
LEVELS = 256
"""Steps of 8 bits."""


def ranges(
    run: Callable[[], Activations],
    method: Method,
    *,
    percentile: float,
    whole: Collection[str] = (),
    symmetric: bool = False,
    levels: int = LEVELS,
) -> dict[str, Range]:
    """Range of each activation; `run` goes through the calibration samples once and is called once or twice.

    `whole` names tensors that keep their full range whatever the method: a model's inputs and outputs,
    where clipping makes scores tie. `symmetric` ranges lie evenly around zero; `levels` are the steps of the
    activations' type, which mse needs to know.
    """
    found = _extremes(run())
    if method != "minmax":
        pick: dict[str, Callable[[np.ndarray, Range], Range]] = {
            "percentile": lambda histogram, full: by_percentile(histogram, full, percentile),
            "entropy": by_entropy,
            "mse": lambda histogram, full: by_mse(histogram, full, levels=levels, symmetric=symmetric),
        }
        histograms = _histograms(run(), found)
        chosen = {name for name, (low, high) in found.items() if name not in whole and low < high}
        found |= {name: pick[method](histograms[name], found[name]) for name in chosen}
    return {name: even(range_) for name, range_ in found.items()} if symmetric else found


def even(range_: Range) -> Range:
    """Widen a range so that zero is in its middle.

    >>> even((-1.0, 3.0))
    (-3.0, 3.0)
    """
    widest = max(abs(range_[0]), abs(range_[1]))
    return -widest, widest


def by_percentile(histogram: np.ndarray, full: Range, percentile: float) -> Range:
    """Leave out (100 - percentile) % of the values at either end.

    >>> by_percentile(np.array([1, 98, 1]), (0.0, 3.0), 98.0)
    (1.0, 2.0)
    """
    edges = np.linspace(full[0], full[1], len(histogram) + 1)
    share = np.cumsum(histogram) / histogram.sum()
    tail = (100.0 - percentile) / 100.0
    low = int(np.searchsorted(share, tail / 2, side="left" if tail == 0 else "right"))
    high = int(np.searchsorted(share, 1 - tail / 2 - 1e-12))
    return float(edges[low]), float(edges[high + 1])


def by_entropy(histogram: np.ndarray, full: Range) -> Range:
    """Choose the threshold that loses the least information (smallest Kullback-Leibler divergence).

    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017. One-sided for activations that are never
    negative (256 levels), else symmetric on absolute values (128 levels), and never wider than the full range.
    """
    low, high = full
    if low >= 0:
        return low, low + (high - low) * _best_share(histogram, LEVELS)
    edges = np.linspace(low, high, len(histogram) + 1)
    centres = np.abs((edges[:-1] + edges[1:]) / 2)
    widest = max(-low, high)
    folded, _ = np.histogram(centres, bins=BINS, range=(0.0, widest), weights=histogram)
    threshold = widest * _best_share(folded, LEVELS // 2)
    return max(low, -threshold), min(high, threshold)


def by_mse(histogram: np.ndarray, full: Range, *, levels: int = LEVELS, symmetric: bool = False) -> Range:
    """Choose the range that has the smallest squared error: of rounding inside it, and of clipping outside.

    Each end is drawn in by turns over 100 candidates; the range always holds zero, since quantization keeps it exact.
    Source: R. Banner, Y. Nahshan, D. Soudry, "Post training 4-bit quantization", NeurIPS 2019, by search.
    """
    edges = np.linspace(full[0], full[1], len(histogram) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    held = histogram > 0
    centres, counts = centres[held], histogram[held].astype(np.float64)
    shares = np.linspace(1.0, 0.01, 100)

    def error(low: float, high: float) -> float:
        step = (high - low) / (levels - 1)
        inside = np.clip(centres, low, high)
        rounded = low + np.round((inside - low) / step) * step
        return float(np.sum(counts * (centres - rounded) ** 2))

    low, high = even(full) if symmetric else (min(full[0], 0.0), max(full[1], 0.0))
    if symmetric:
        return even((0.0, min((high * share for share in shares), key=lambda end: error(-end, end))))
    for _ in range(2):
        if high > 0:
            high = min((max(full[1], 0.0) * share for share in shares), key=lambda end: error(low, end))
        if low < 0:
            low = min((min(full[0], 0.0) * share for share in shares), key=lambda end: error(end, high))
    low = max(low, full[0])
    return low, max(low, min(high, full[1]))


def _best_share(histogram: np.ndarray, levels: int) -> float:
    counts = _filled(histogram.astype(np.float64), levels)
    # The bin at zero holds all that a ReLU cut off; quantization keeps zero exact, so it must not outvote the rest.
    counts[0] = counts[1]
    candidates = range(levels, len(counts) + 1, max(1, len(counts) // LEVELS))
    losses = [_divergence(counts, stop, levels) for stop in candidates]
    return candidates[int(np.argmin(losses))] / len(counts)


def _filled(counts: np.ndarray, levels: int) -> np.ndarray:
    """Merge bins until they hold eight values each on average; near-empty ones lose nothing, whatever the range."""
    while counts.sum() < 8 * len(counts) and len(counts) > 4 * levels:
        counts = counts.reshape(-1, 2).sum(axis=1)
    return counts


def _divergence(counts: np.ndarray, stop: int, levels: int) -> float:
    clipped = counts[:stop].copy()
    inside = clipped > 0
    group = np.arange(stop) * levels // stop
    sums = np.bincount(group, weights=clipped, minlength=levels)
    filled = np.bincount(group, weights=inside, minlength=levels)
    spread = np.divide(sums, filled, out=np.zeros(levels), where=filled > 0)[group] * inside
    clipped[-1] += counts[stop:].sum()
    total, spread_total = clipped.sum(), spread.sum()
    if spread_total == 0:
        return float("inf")
    p, q = clipped / total, spread / spread_total
    # A bin that holds only clipped values has no counterpart in q: a small floor keeps the divergence finite.
    keep = p > 0
    return float(np.sum(p[keep] * np.log(p[keep] / np.maximum(q[keep], 1e-9))))


def _extremes(run: Activations) -> dict[str, Range]:
    found: dict[str, Range] = {}
    for tensors in run:
        for name, values in tensors.items():
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = (min(low, float(values.min())), max(high, float(values.max())))
    return found


def _histograms(run: Activations, full: dict[str, Range]) -> dict[str, np.ndarray]:
    found = {name: np.zeros(BINS, np.int64) for name in full}
    for tensors in run:
        for name, values in tensors.items():
            low, high = full[name]
            if high > low:
                # In double precision: a narrow range far from zero has no room for the bins in single.
                found[name] += np.histogram(values.astype(np.float64), bins=BINS, range=(low, high))[0]
    return found
