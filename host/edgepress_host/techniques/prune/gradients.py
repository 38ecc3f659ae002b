"""Gradients of a model that is not trained, for scores that go by them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from edgepress_host.press.data import Samples
from edgepress_host.press.training import Step, one_thread, supervised

SAMPLES = 512
"""As many as scores by gradients look at."""

_BATCH = 64


def backward(model: nn.Module, samples: Samples) -> Iterator[None]:
    """Give `model` the gradients of the labels' loss on one batch after the other, in evaluation mode."""
    x, y = torch.from_numpy(samples.x.copy()), torch.from_numpy(samples.y.copy())
    training = model.training
    model.eval()
    total = -(-len(x) // _BATCH)
    for number, indices in enumerate(torch.split(torch.arange(len(x)), _BATCH)):
        model.zero_grad(set_to_none=True)
        with one_thread(), torch.enable_grad():
            step = Step(x[indices], y[indices], indices, number, total)
            supervised(model(step.x), step).backward()  # type: ignore[no-untyped-call]
        yield
    model.zero_grad(set_to_none=True)
    model.train(training)
