"""Zeros that come while the model trains: how many there are at each step, and the masks that make them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from edgepress_host.press.training import Step
from edgepress_host.techniques.prune.weights import WeightCut


class Ramp(NamedTuple):
    """From `initial` sparsity to a layer's own; `begin` and `end` are shares of training, `every` is in steps.

    `power` 0 is there at once, 1 is a straight line, 3 is the decay of Zhu and Gupta.
    """

    initial: float
    begin: float
    end: float
    every: int
    power: float

    def steps(self, total: int) -> tuple[int, int]:
        """First and last of `total` steps at which masks are made."""
        last = max(0, total - 1)
        first = min(int(self.begin * total), last)
        return first, max(first, min(int(self.end * total), last))

    def is_due(self, number: int, total: int) -> bool:
        """Tell whether masks are made after this step."""
        first, last = self.steps(total)
        return first <= number <= last and ((number - first) % self.every == 0 or number == last)

    def sparsity(self, final: float, number: int, total: int) -> float:
        """Return the sparsity after a step: s_f + (s_i - s_f)(1 - t)^power (Zhu, Gupta 2017, equation 1).

        >>> ramp = Ramp(initial=0.0, begin=0.0, end=1.0, every=1, power=3)
        >>> [round(ramp.sparsity(0.8, number, 101), 3) for number in (0, 50, 100)]
        [0.0, 0.7, 0.8]
        """
        first, last = self.steps(total)
        passed = 1.0 if number >= last else max(0.0, (number - first) / (last - first))
        return final + (self.initial - final) * ((1 - passed) ** self.power if self.power else 0.0)


class Gradual:
    """Called after each step of training, it zeroes what the ramp asks for; the weights themselves hold the zeros.

    A weight that is gone stays gone: the smallest of the next masks are those that are zero.
    """

    def __init__(self, cut: WeightCut, ramp: Ramp) -> None:
        self._cut = cut
        self._ramp = ramp
        self._weights = [target.weight for target in cut.chosen]
        self._masks: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, step: Step) -> None:
        """Make the masks anew where they are due, and hold the weights to them."""
        # A negative weight times zero is -0.0, whose bits are not those of 0.0.
        for weight, mask in zip(self._weights, self._masks, strict=bool(self._masks)):
            weight.mul_(mask).add_(0.0)
        if self._ramp.is_due(step.number, step.total):
            now = functools.partial(self._ramp.sparsity, number=step.number, total=step.total)
            self._masks = self._cut.masks(self._weights, now)
            for weight, mask in zip(self._weights, self._masks, strict=True):
                weight.mul_(mask).add_(0.0)
