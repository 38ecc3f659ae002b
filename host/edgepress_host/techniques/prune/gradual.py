"""Zeros that come while the model trains: how many there are at each step, and the masks that make them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from edgepress_host.press.training import Step
from edgepress_host.techniques.prune.weights import WeightCut

_UNSEEN_RATE = 0.1
"""What 0.01 at a momentum of 0.9, with which the paper's networks learn, comes to."""


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

    Without `regrow`, a weight that is gone stays gone. With it, weights that are masked go on learning unseen, by the
    gradients that they have at zero, and come back where they have become larger than others (Guo, Yao, Chen: Dynamic
    Network Surgery, NeurIPS 2016, equation 3, with the ramp's sparsity in place of thresholds). The unseen ones go by
    plain gradient descent: the optimiser's steps are as long for noise as for what a weight is needed for.
    """

    def __init__(self, cut: WeightCut, ramp: Ramp, *, regrow: bool) -> None:
        self._cut = cut
        self._ramp = ramp
        self._weights = [target.weight for target in cut.chosen]
        self._masks: list[Tensor] | None = None
        # What an earlier step set to zero does not come back.
        self._alive = [weight.detach() != 0 for weight in self._weights]
        self._dense = [weight.detach().clone() for weight in self._weights] if regrow else None

    @torch.no_grad()
    def __call__(self, step: Step) -> None:
        """Make the masks anew where they are due, and hold the weights to them."""
        if self._dense is not None:
            self._learn_unseen(self._dense)
        if self._ramp.is_due(step.number, step.total):
            weights = self._dense or self._weights
            now = functools.partial(self._ramp.sparsity, number=step.number, total=step.total)
            self._masks = self._cut.masks(weights, now)
        for index, weight in enumerate(self._weights):
            if self._masks is not None:
                source = weight if self._dense is None else self._dense[index]
                weight.copy_(source * self._masks[index])

    def _learn_unseen(self, dense: list[Tensor]) -> None:
        """Take over what the optimiser made of the seen weights, and let the others follow their gradients."""
        for index, weight in enumerate(self._weights):
            if self._masks is None:
                dense[index].copy_(weight)
            elif weight.grad is not None:
                unseen = (dense[index] - _UNSEEN_RATE * weight.grad) * self._alive[index]
                dense[index].copy_(torch.where(self._masks[index], weight, unseen))
