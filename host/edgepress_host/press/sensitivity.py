"""How much each layer can take: accuracy of the torch module when one layer is changed and the others are not.

The accuracies rank layers against each other; a variant's own accuracy is measured afterwards on its file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np
import torch
from torch import nn

from edgepress_host.press.data import Samples
from edgepress_host.press.structure import digest
from edgepress_host.press.training import first_output, one_thread

Change = Callable[[nn.Module, str, float], nn.Module]
"""(model, layer's name, level) → a changed copy; level is a ratio or a number of bits."""

Metric = Callable[[np.ndarray, np.ndarray], float]
Memo = Callable[[Sequence[str], Callable[[], float]], float]
"""(what a number is of, how to measure it) → the number, which may come from the cache."""

L = TypeVar("L", bound=nn.Module)


class Point(msgspec.Struct, frozen=True):
    """Accuracy of the whole model with `layer` alone changed to `level`."""

    layer: str
    level: float
    accuracy: float


def afresh(_of: Sequence[str], measure: Callable[[], float]) -> float:
    """Measure, where there is no cache: a Memo."""
    return measure()


def sweep(
    model: nn.Module,
    levels: Mapping[str, Sequence[float]],
    change: Change,
    score: Callable[[nn.Module], float],
    *,
    say: Callable[[str], None] = lambda _: None,
) -> list[Point]:
    """Change one layer at a time to each of its levels, and score the result."""
    total = sum(len(some) for some in levels.values())
    points: list[Point] = []
    for layer, some in levels.items():
        for level in some:
            say(f"sensitivity of {layer} at {level:g} ({len(points) + 1}/{total})")
            points.append(Point(layer, level, score(change(model, layer, level))))
    return points


def scorer(samples: Samples, metric: Metric, memo: Memo, *, batch: int = 256) -> Callable[[nn.Module], float]:
    """Return what scores a torch module on samples, by its first output; of equal modules, one is measured."""

    def score(model: nn.Module) -> float:
        return memo(
            ("accuracy", digest(model)), lambda: float(metric(outputs_of(model, samples.x, batch=batch), samples.y))
        )

    return score


def outputs_of(model: nn.Module, x: np.ndarray, *, batch: int = 256) -> np.ndarray:
    """Return the first output of a model in evaluation mode, without gradients; shape (N, …)."""
    training = model.training
    with one_thread(), torch.no_grad():
        model.eval()
        inputs = (torch.from_numpy(np.array(x[start : start + batch])) for start in range(0, len(x), batch))
        parts = [first_output(model(some)).numpy() for some in inputs]
        model.train(training)
    return np.concatenate(parts)


def named(model: nn.Module, kinds: tuple[type[L], ...]) -> dict[str, L]:
    """Layers of the given kinds by their names, in the model's order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
