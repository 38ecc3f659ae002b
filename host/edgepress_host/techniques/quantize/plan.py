"""What the options say, in the form in which the tools of each format take it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from edgepress_host.technique import StepFailed
from edgepress_host.techniques.quantize.grid import Integers, WeightRange, integers
from edgepress_host.techniques.quantize.ranges import Method


class WeightPlan(NamedTuple):
    """How weights become integers."""

    bits: Callable[[str, str, np.ndarray, tuple[int, ...]], int | None]
    """(layer, type, weight, its channel axes) → bits, or None for a layer that stays as it is."""

    per_channel: bool
    block_size: int | None
    """Weights that share a scale along a dense layer's inputs; None: a whole channel."""

    symmetric: bool
    method: WeightRange
    note: Callable[[str], None]

    @property
    def plain(self) -> bool:
        """Tell whether 8 bits are just what the tools make of their own accord."""
        return self.symmetric and self.method == "minmax"

    def integers(self, weight: np.ndarray, bits: int, kept: tuple[int, ...]) -> Integers:
        """Round a weight whose channel axes are `kept`."""
        axes = kept if self.per_channel else ()
        return integers(weight, bits, axes, symmetric=self.symmetric, method=self.method)


class ActivationPlan(NamedTuple):
    """How static quantization finds the ranges of activations, and what type they get."""

    samples: np.ndarray
    method: Method
    percentile: float
    bits: int
    symmetric: bool | None
    """None: as the runtime likes it best."""

    integer_io: bool

    @property
    def levels(self) -> int:
        """Steps of the type."""
        return 1 << self.bits


_HALF = 65504.0
"""The largest number of half precision (IEEE 754)."""


def refuse_beyond_half(weights: Iterable[tuple[str, np.ndarray]]) -> None:
    """Raise StepFailed where a layer's weight does not fit into half precision, in which it would be cut off."""
    for layer, values in weights:
        largest = float(np.abs(values).max(initial=0.0))
        if largest > _HALF:
            raise StepFailed(
                f"{layer}: a weight of {largest:g} is beyond half precision ({_HALF:g}); "
                "take mode bf16, weight_only or static"
            )


def listed(names: list[str]) -> str:
    """Join names for a note; many are cut short.

    >>> listed(["a", "b"])
    'a, b'
    """
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])} and {len(names) - 8} more"
