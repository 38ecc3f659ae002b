"""The rank of what is signal in a noisy matrix: empirical variational Bayesian matrix factorization.

Nakajima, Sugiyama, Babacan, Tomioka, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix
Factorization", JMLR 14 (2013): the global solution tells which singular values survive, the least free energy tells
the noise's variance.
"""

from __future__ import annotations

import math

import numpy as np

_TAU = 2.5129
"""τ at the threshold is about this times the square root of the ratio of the sides."""

_STEPS = 400
_TINY = 1e-12


def signal_rank(values: np.ndarray, rows: int, columns: int) -> int:
    """Return how many singular values of a matrix (rows, columns) stand above its noise; `values` descend."""
    short, long = min(rows, columns), max(rows, columns)
    squares = np.square(values[:short].astype(np.float64))
    if squares.sum() == 0:
        return 0
    squares = np.maximum(squares, _TINY * squares[0])
    alpha = short / long
    tau = _TAU * math.sqrt(alpha)
    above = (1 + tau) * (1 + alpha / tau)
    variance = _noise(squares, short, long, above)
    return int((squares > long * variance * above).sum())


def _noise(squares: np.ndarray, short: int, long: int, above: float) -> float:
    """Return the variance of the noise: least free energy, searched over the interval that must hold it."""
    alpha = short / long
    last = min(math.ceil(short / (1 + alpha)) - 1, len(squares) - 1)
    highest = squares.sum() / (short * long)
    lowest = max(squares[last] / (long * above), squares[last:].mean() / long)
    lowest = min(max(lowest, _TINY * highest), highest)
    # The free energy may have several minima: look everywhere, then closer around the best.
    for _ in range(4):
        grid = np.geomspace(lowest, highest, _STEPS)
        best = int(np.argmin([_free_energy(variance, squares, alpha, long, above) for variance in grid]))
        lowest, highest = grid[max(best - 1, 0)], grid[min(best + 1, _STEPS - 1)]
    return float(grid[best])


def _free_energy(variance: float, squares: np.ndarray, alpha: float, long: int, above: float) -> float:
    """Free energy of a noise's variance, up to a constant factor and term; all singular values are given."""
    x = squares / (long * variance)
    noise, signal = x[x <= above], x[x > above]
    tau = 0.5 * (signal - (1 + alpha) + np.sqrt(np.square(signal - (1 + alpha)) - 4 * alpha))
    return float(
        np.sum(noise - np.log(noise))
        + np.sum(signal - tau + np.log((tau + 1) / signal) + alpha * np.log(tau / alpha + 1))
    )
