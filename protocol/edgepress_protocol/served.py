"""What a serving model was asked with: running statistics of its inputs, which merge."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

Whole = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


class InputStats(msgspec.Struct, frozen=True):
    """Values of one input over `requests` requests, which are some of all where the board has no time to look at more.

    Values are reals: those of a quantized input are what its steps stand for. `count` are the finite ones, which mean,
    standard deviation (of the population) and extremes are of; NaN and infinities are counted apart.
    """

    name: str
    requests: Whole = 0
    count: Whole = 0
    mean: float = 0.0
    std: float = 0.0
    min: float = 0.0
    max: float = 0.0
    nan_count: Whole = 0
    infinite_count: Whole = 0

    def merge(self, other: InputStats) -> InputStats:
        """Add the values of two spans of time (Chan, Golub, LeVeque 1979, equation 2.1).

        >>> InputStats("x", 1, 2, 1.0, 1.0, 0.0, 2.0).merge(InputStats("x", 1, 2, 3.0, 1.0, 2.0, 4.0)).mean
        2.0
        """
        finite = [each for each in (self, other) if each.count]
        lowest = min((each.min for each in finite), default=0.0)
        highest = max((each.max for each in finite), default=0.0)
        count = self.count + other.count
        share = other.count / count if count else 0.0
        apart = other.mean - self.mean
        # Written with shares, so that the squares of many values do not add up beyond what a float holds.
        variance = (1 - share) * self.std**2 + share * other.std**2 + share * (1 - share) * apart**2
        return InputStats(
            self.name,
            self.requests + other.requests,
            count,
            self.mean + share * apart,
            math.sqrt(variance),
            lowest,
            highest,
            self.nan_count + other.nan_count,
            self.infinite_count + other.infinite_count,
        )
