"""One training loop for all that fine-tunes: explicit seed, one thread, zeros kept, non-finite losses refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec
import numpy as np
import torch
from edgepress_protocol.errors import EdgepressError
from torch import Tensor, nn
from torch.nn import functional

from edgepress_host.press.data import Samples

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(outputs, labels, indices of the samples) → scalar loss."""


class Diverged(EdgepressError):  # noqa: N818 - it names what happened to the training
    """Training produced a loss that is not a finite number."""


class Schedule(msgspec.Struct, frozen=True):
    """How long and how fast to train."""

    epochs: int
    lr: float
    batch: int
    samples: int | None


Epochs = Annotated[int, msgspec.Meta(ge=0, le=1000)]
LearningRate = Annotated[float, msgspec.Meta(gt=0, le=10)]
Batch = Annotated[int, msgspec.Meta(ge=2)]
SampleLimit = Annotated[int, msgspec.Meta(ge=2)] | None


def fit(
    model: nn.Module, samples: Samples, schedule: Schedule, loss: Loss, *, seed: int, say: Callable[[str], None]
) -> nn.Module:
    """Train `model` in place with AdamW under a cosine schedule, and return it in evaluation mode.

    The loop sees the first `schedule.samples` samples, shuffled by `seed`. A weight that is exactly zero at the
    start stays zero: a former step pruned it. Raises Diverged.
    """
    chosen = samples.first(schedule.samples)
    # Convolutions train about 1.5 times faster with the channels last; the weights leave as they came.
    layout = torch.channels_last if chosen.x.ndim == 4 else torch.contiguous_format
    x = torch.from_numpy(np.array(chosen.x)).contiguous(memory_format=layout)
    y = torch.from_numpy(np.array(chosen.y))
    model.to(memory_format=layout)  # type: ignore[call-overload]
    masks = [(weight, weight != 0) for weight in model.parameters() if weight.ndim > 1 and bool((weight == 0).any())]
    steps = schedule.epochs * math.ceil(len(x) / schedule.batch)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=1e-4)
        pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(1, steps))
        model.train()
        for epoch in range(schedule.epochs):
            for number, indices in enumerate(_batches(len(x), schedule.batch)):
                value = loss(model(x[indices]), y[indices], indices)
                reached = value.item()
                if not math.isfinite(reached):
                    raise Diverged(f"the loss became {reached} in epoch {epoch + 1}; lower lr ({schedule.lr})")
                optimiser.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                pace.step()
                _keep_zeros(masks)
                if number % 20 == 0:
                    done = number * schedule.batch
                    say(f"epoch {epoch + 1}/{schedule.epochs}, {done}/{len(x)}, loss {reached:.3f}")
    return model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload, no-any-return]


def supervised(outputs: Tensor, labels: Tensor, _indices: Tensor) -> Tensor:
    """Cross-entropy for integer labels of shape (N,), else mean squared error."""
    if holds_classes(labels.numpy()):
        return functional.cross_entropy(outputs, labels.long())
    return functional.mse_loss(outputs, labels.reshape(outputs.shape).to(outputs.dtype))


def holds_classes(labels: np.ndarray) -> bool:
    """Tell class numbers, one per sample, from values to come near to."""
    return labels.dtype in (np.int64, np.int32, np.uint8) and labels.ndim == 1


def outputs_of(model: nn.Module, x: np.ndarray, *, batch: int = 256) -> Tensor:
    """Return the outputs of a model in evaluation mode, without gradients; shape (N, …)."""
    with one_thread(), torch.no_grad():
        parts = [model(torch.from_numpy(np.array(x[start : start + batch]))) for start in range(0, len(x), batch)]
    return torch.cat(parts)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: the same sums in the same order in every run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(count: int, batch: int) -> Iterator[Tensor]:
    order = torch.randperm(count)
    for start in range(0, count, batch):
        indices = order[start : start + batch]
        # Batch normalisation cannot train on a single sample.
        if len(indices) > 1:
            yield indices


def _keep_zeros(masks: list[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for weight, mask in masks:
            weight.mul_(mask)
