"""Weights as integers of 8, 4, 2 or 1 bits: the same numbers for every format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

Bits = Literal[8, 4, 2, 1]
WeightRange = Literal["minmax", "mse"]

_SHARES = np.linspace(1.0, 0.05, 96)
"""Parts of the largest weight that the search for the smallest squared error tries; 1 goes first and wins ties."""


class Integers(NamedTuple):
    """`real ≈ scale * (values - zero)`; scale and zero broadcast against values, which are int8 whatever the bits."""

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    bits: int

    @property
    def real(self) -> np.ndarray:
        """Return the weights that the integers stand for, in fp32."""
        real: np.ndarray = (self.values.astype(np.float32) - self.zero.astype(np.float32)) * self.scale
        return real


def highest(bits: int) -> int:
    """Largest integer of a symmetric grid, which leaves out the lowest one so that zero is in its middle.

    >>> [highest(bits) for bits in (8, 4, 2, 1)]
    [127, 7, 1, 1]
    """
    return int(max(1, 2 ** (bits - 1) - 1))


def integers(
    weight: np.ndarray, bits: int, kept: tuple[int, ...], *, symmetric: bool = True, method: WeightRange = "minmax"
) -> Integers:
    """Round weights to a grid with one scale for each index of the axes `kept` (none: one for the tensor).

    Zero stays exactly zero at 2 bits and more. One bit keeps the sign, and the mean magnitude as its scale, which is
    what loses the least: M. Rastegari et al., "XNOR-Net", ECCV 2016, equation 6.
    """
    weight = weight.astype(np.float32)
    rest = tuple(axis for axis in range(weight.ndim) if axis not in kept)
    if bits == 1:
        scale = _nonzero(np.abs(weight).mean(axis=rest, keepdims=True))
        return Integers(np.where(weight >= 0, 1, -1).astype(np.int8), scale, np.zeros_like(scale, np.int8), 1)
    low = weight.min(axis=rest, keepdims=True)
    high = weight.max(axis=rest, keepdims=True)

    def tried(share: float) -> Integers:
        return _between(weight, low * np.float32(share), high * np.float32(share), bits, symmetric=symmetric)

    return tried(1.0) if method == "minmax" else _best(weight, rest, tried)


def _between(weight: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int, *, symmetric: bool) -> Integers:
    if symmetric:
        top = highest(bits)
        scale = _nonzero(np.maximum(np.abs(low), np.abs(high)) / np.float32(top))
        values = np.clip(np.round(weight / scale), -top, top)
        return Integers(values.astype(np.int8), scale, np.zeros_like(scale, np.int8), bits)
    bottom = -(2 ** (bits - 1))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = _nonzero((high - low) / np.float32(2**bits - 1))
    zero = np.clip(np.round(bottom - low / scale), bottom, -bottom - 1)
    values = np.clip(np.round(weight / scale) + zero, bottom, -bottom - 1)
    return Integers(values.astype(np.int8), scale, zero.astype(np.int8), bits)


def _best(weight: np.ndarray, rest: tuple[int, ...], tried: Callable[[float], Integers]) -> Integers:
    """Of all candidates take, for each scale apart, the one with the smallest squared error."""
    best = tried(1.0)
    smallest = ((best.real - weight) ** 2).sum(axis=rest, keepdims=True)
    for share in _SHARES[1:]:
        other = tried(float(share))
        error = ((other.real - weight) ** 2).sum(axis=rest, keepdims=True)
        better = error < smallest
        smallest = np.where(better, error, smallest)
        best = Integers(
            np.where(better, other.values, best.values),
            np.where(better, other.scale, best.scale),
            np.where(better, other.zero, best.zero),
            best.bits,
        )
    return best


def found_bits(weight: np.ndarray, kept: tuple[int, ...]) -> Bits:
    """Return the fewest of 2, 4 and 8 bits whose symmetric grid holds these very weights; 8 where none does.

    A preparation that chose bits for each layer leaves its choice in the weights themselves.
    """
    candidates: tuple[Bits, ...] = (2, 4)
    for bits in candidates:
        found = integers(weight, bits, kept)
        if np.all(np.abs(found.real - weight) <= 1e-3 * found.scale):
            return bits
    return 8


def shares_values(weight: np.ndarray) -> bool:
    """Tell whether the weights of a whole tensor share values, as clustering leaves them: at most 256, by chance never.

    >>> shares_values(np.repeat(np.arange(4.0), 32)), shares_values(np.arange(128.0))
    (True, False)
    """
    few = min(256, weight.size // 8)
    # Most tensors do not, which a few of their weights show.
    return len(np.unique(weight.flat[: 4 * few + 1])) <= few and 1 < len(np.unique(weight)) <= few


def _nonzero(scale: np.ndarray) -> np.ndarray:
    """Keep a channel of zeros from dividing by zero."""
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
