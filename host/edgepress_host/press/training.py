"""One training loop for all that fine-tunes: explicit seed, one thread, zeros kept, non-finite losses refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from edgepress_protocol.errors import EdgepressError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from edgepress_host.press.data import Samples


class Step(NamedTuple):
    """One batch on its way: inputs (B, …) as augmented, labels (B, …), sample numbers (B,), and where training is."""

    x: Tensor
    y: Tensor
    indices: Tensor
    number: int
    total: int


Loss = Callable[[Any, Step], Tensor]
"""(what the model returned, the batch) → scalar loss."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs (B, …), source of chance) → inputs of the same shape."""


class Around(Protocol):
    """What a training is surrounded by: chance, augmentation of batches, and who hears of it."""

    @property
    def seed(self) -> int:
        """Order, dropout and augmentation follow from it."""

    @property
    def augment(self) -> Augment | None:
        """What changes each training batch at random, if anything does."""

    @property
    def say(self) -> Callable[[str], None]:
        """Who hears how far it is."""

    @property
    def note(self) -> Callable[[str], None]:
        """Who hears what is to be kept with the result."""


class Diverged(EdgepressError):  # noqa: N818 - it names what happened to the training
    """Training produced a loss that is not a finite number, before anything worth keeping was reached."""


class Untrainable(EdgepressError):  # noqa: N818 - it names what was found
    """A model without weights that could learn, too few samples, or labels that say nothing about the output."""


class Schedule(msgspec.Struct, frozen=True):
    """How long and how fast to train. `samples` takes the first ones; `bfloat16` is for forward passes alone."""

    epochs: int
    lr: float
    batch: int
    samples: int | None
    weight_decay: float = 1e-4
    bfloat16: bool = False


Epochs = Annotated[int, msgspec.Meta(ge=0, le=1000)]
LearningRate = Annotated[float, msgspec.Meta(gt=0, le=10)]
Batch = Annotated[int, msgspec.Meta(ge=2)]
SampleLimit = Annotated[int, msgspec.Meta(ge=2)] | None
WeightDecay = Annotated[float, msgspec.Meta(ge=0, le=1)]


def fit(
    model: nn.Module,
    samples: Samples,
    schedule: Schedule,
    loss: Loss,
    around: Around,
    *,
    also: Sequence[nn.Module] = (),
    after_step: Callable[[Step], None] = lambda _: None,
) -> nn.Module:
    """Train `model` in place with AdamW under a cosine schedule, and return it in evaluation mode.

    The loop sees the first `schedule.samples` samples, shuffled by the seed. A weight that is exactly zero at the
    start stays zero: a former step pruned it. `also` are modules that the loss uses and that learn beside the model;
    `after_step` may change weights (masks, projections) after each step of the optimiser.

    Where the loss stops being finite, training ends with the weights of the epoch whose mean loss was the smallest,
    and a note says so. Raises Diverged where that happens in the first epoch, and Untrainable.
    """
    chosen = samples.first(schedule.samples)
    # Convolutions train about 1.5 times faster with the channels last; the weights leave as they came.
    layout = torch.channels_last if chosen.x.ndim == 4 else torch.contiguous_format
    x = torch.from_numpy(np.array(chosen.x)).contiguous(memory_format=layout)
    y = torch.from_numpy(np.array(chosen.y))
    learners = (model, *also)
    for learner in learners:
        learner.to(memory_format=layout).train()  # type: ignore[call-overload]
    masks = [(weight, weight != 0) for weight in model.parameters() if weight.ndim > 1 and bool((weight == 0).any())]
    total = schedule.epochs * sum(1 for _ in _batches(torch.arange(len(x)), schedule.batch))
    if schedule.epochs and not total:
        raise Untrainable(f"training takes 2 samples or more, and the train split has {len(x)}")
    number, best = 0, _Best()
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(around.seed)
        chance = torch.Generator().manual_seed(around.seed)
        optimiser, pace = _optimiser(learners, schedule, total)
        for epoch in range(1, schedule.epochs + 1):
            losses = 0.0
            for indices in _batches(torch.randperm(len(x)), schedule.batch):
                inputs = x[indices] if around.augment is None else around.augment(x[indices], chance)
                step = Step(inputs.contiguous(memory_format=layout), y[indices], indices, number, total)
                with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
                    outputs = model(step.x)
                value = loss(_as_float(outputs), step)
                reached = value.item()
                if not math.isfinite(reached):
                    best.go_back(model, f"the loss became {reached} in epoch {epoch}; lower lr ({schedule.lr})", around)
                    return _left(learners)
                optimiser.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                pace.step()
                _keep_zeros(masks)
                after_step(step)
                losses += reached
                if number % 20 == 0:
                    around.say(f"epoch {epoch}/{schedule.epochs}, {number + 1}/{total} steps, loss {reached:.3f}")
                number += 1
            # The last step may have broken what no loss was computed of any more.
            if not _is_finite(model):
                best.go_back(model, f"weights became infinite in epoch {epoch}; lower lr ({schedule.lr})", around)
                return _left(learners)
            best.keep(model, epoch, losses)
    return _left(learners)


def _optimiser(
    learners: Sequence[nn.Module], schedule: Schedule, total: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    weights = [weight for learner in learners for weight in learner.parameters() if weight.requires_grad]
    if not weights:
        raise Untrainable("the model has no weights that could learn; leave this step out")
    optimiser = torch.optim.AdamW(weights, lr=schedule.lr, weight_decay=schedule.weight_decay)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(1, total))


class _Best:
    """The weights after the epoch whose losses were the smallest."""

    def __init__(self) -> None:
        self._loss = math.inf
        self._epoch = 0
        self._weights: dict[str, Tensor] = {}

    def keep(self, model: nn.Module, epoch: int, losses: float) -> None:
        if losses <= self._loss:
            self._loss, self._epoch = losses, epoch
            self._weights = {name: value.clone() for name, value in model.state_dict().items()}

    def go_back(self, model: nn.Module, why: str, around: Around) -> None:
        if not self._weights:
            raise Diverged(why)
        model.load_state_dict(self._weights)
        around.note(f"{why}; training ended there, with the weights after epoch {self._epoch}")


def _is_finite(model: nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in model.state_dict().values())


def _left(learners: Sequence[nn.Module]) -> nn.Module:
    for learner in learners:
        learner.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return learners[0]


def _as_float(outputs: Any) -> Any:
    """Return outputs in fp32 whatever autocast made of them; sequences and dictionaries keep their shape."""
    return tree_map(lambda leaf: leaf.float() if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf, outputs)


def first_output(outputs: Any) -> Tensor:
    """Return the output that labels are for: the only one, or the first of several."""
    return every_output(outputs)[0]


def every_output(outputs: Any) -> list[Tensor]:
    """Return all tensors among what a model returned."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def supervised(outputs: Any, step: Step) -> Tensor:
    """Cross-entropy for integer labels of shape (N,), else mean squared error; on the first output.

    Raises Untrainable for labels that say nothing about that output.
    """
    found = first_output(outputs)
    shape, way_out = tuple(found.shape[1:]), "distill with alpha = 1 needs no labels"
    if holds_classes(step.y.numpy()):
        low, high = int(step.y.min()), int(step.y.max())
        if found.ndim < 2 or low < 0 or high >= found.shape[1]:
            raise Untrainable(
                f"the labels are classes from {low} to {high}, for which the model's output of shape {shape} has no "
                f"scores; {way_out}"
            )
        return functional.cross_entropy(found, step.y.long())
    if step.y.numel() != found.numel():
        kind = str(step.y.dtype).removeprefix("torch.")
        raise Untrainable(
            f"the labels are {kind} of shape {tuple(step.y.shape[1:])}: no classes, which are integers, and no values "
            f"for the model's output of shape {shape}; {way_out}"
        )
    return functional.mse_loss(found, step.y.reshape(found.shape).to(found.dtype))


def holds_classes(labels: np.ndarray) -> bool:
    """Tell class numbers, one per sample, from values to come near to."""
    return labels.dtype.kind in "iu" and labels.ndim == 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: the same sums in the same order in every run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(order: Tensor, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        # Batch normalisation cannot train on a single sample.
        if len(indices) > 1:
            yield indices


def _keep_zeros(masks: list[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for weight, mask in masks:
            weight.mul_(mask).add_(0.0)  # a negative weight times zero is -0.0, whose bits are not those of 0.0
