"""The training of the zoo: it keeps its state after each epoch, so that a training that was stopped goes on."""

from __future__ import annotations

import copy
import io
import math
import pickle
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from edgepress_models import files
from edgepress_models.zoo import Settings


class OtherTraining(RuntimeError):  # noqa: N818 - it names what the file holds
    """The kept state is no state, or of a training with other options; the message is one line that says what to do."""


@dataclass(frozen=True)
class Options:
    """What the caller chooses. With `bfloat16`, forward passes run under autocast; the weights stay float32."""

    epochs: int
    seed: int
    bfloat16: bool


@dataclass(frozen=True)
class Trained:
    """The model at its best epoch, that epoch, what it reached on the validate split, and the seconds of all parts."""

    model: nn.Module
    epoch: int
    validate: float
    seconds: float


@dataclass(frozen=True)
class _Best:
    """The epoch that reached the most on the validate split so far, and the model after it."""

    model: nn.Module
    epoch: int = 0
    validate: float = -math.inf


@dataclass(frozen=True)
class _Running:
    """What a training consists of between two epochs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator

    def kept(self) -> dict[str, Any]:
        """Return all of it as plain tensors and numbers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "dropout": torch.get_rng_state(),
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go back to what was kept."""
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.schedule.load_state_dict(kept["schedule"])
        self.generator.set_state(kept["generator"])
        torch.set_rng_state(kept["dropout"])


def train(settings: Settings, options: Options, progress: Progress, resume: Path) -> Trained:
    """Train a model from its first epoch, or from the state that the file `resume` keeps; each epoch is kept there.

    Raises:
        OtherTraining: the file keeps a training with other options, or something else.
        DataMissing: the data set is not here (see sources).
    """
    started_s = time.monotonic()
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = settings.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in the stub
    inputs, labels = settings.load("train")
    steps_per_epoch = len(labels) // settings.batch
    optimizer = settings.optimizer(model.parameters(), settings.peak_learning_rate, settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.peak_learning_rate, total_steps=options.epochs * steps_per_epoch, pct_start=0.2
    )
    bar = progress.add_task("training", total=options.epochs * steps_per_epoch)
    state = _Running(model, optimizer, schedule, generator)
    best = _Best(model)
    first, seconds_before = 1, 0.0
    if resume.exists():
        kept = _read(resume, options)
        state.restore(kept)
        best = _Best(copy.deepcopy(model), kept["best_epoch"], kept["best_validate"])
        best.model.load_state_dict(kept["best_model"])
        first, seconds_before = kept["epoch"] + 1, kept["seconds"]
        progress.advance(bar, kept["epoch"] * steps_per_epoch)
    for epoch in range(first, options.epochs + 1):
        order = torch.randperm(len(labels), generator=generator)[: steps_per_epoch * settings.batch]
        for chosen in torch.split(order, settings.batch):
            batch = inputs[chosen] if settings.augment is None else settings.augment(inputs[chosen], generator)
            _descend(settings, model, batch, labels[chosen], optimizer, options.bfloat16)
            schedule.step()
            progress.advance(bar)
        reached = measure(model, settings, "validate")
        if reached > best.validate:
            best = _Best(copy.deepcopy(model), epoch, reached)
        seconds = seconds_before + time.monotonic() - started_s
        _write(resume, state.kept() | _so_far(options, epoch, best, seconds))
        _describe(progress, bar, epoch, options.epochs, f"validate {settings.metric.name} {reached:.4f}")
    return Trained(best.model.eval(), best.epoch, best.validate, seconds_before + time.monotonic() - started_s)


def measure(model: nn.Module, settings: Settings, split: str, batch: int = 500) -> float:
    """Return the mean of the model's metric over a split; the model is left in eval mode."""
    inputs, labels = settings.load(split)
    model.eval()
    with torch.inference_mode():
        values = [
            settings.metric.of_each(model(some), right)
            for some, right in zip(torch.split(inputs, batch), torch.split(labels, batch), strict=True)
        ]
    return torch.cat(values).mean().item()


def _so_far(options: Options, epoch: int, best: _Best, seconds: float) -> dict[str, Any]:
    return {
        "options": asdict(options),
        "epoch": epoch,
        "best_epoch": best.epoch,
        "best_validate": best.validate,
        "best_model": best.model.state_dict(),
        "seconds": seconds,
    }


def _read(path: Path, options: Options) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = torch.load(path, weights_only=True)
        said_options = kept["options"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise OtherTraining(f"{path} is not the state of a training that can go on: delete it") from error
    if said_options != asdict(options):
        said = ", ".join(f"{name} {value}" for name, value in said_options.items())
        raise OtherTraining(f"{path} keeps a training that was stopped, with {said}: go on with these, or delete it")
    return kept


def _write(path: Path, kept: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    files.write_atomically(path, buffer.getvalue())


def _descend(
    settings: Settings,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    bfloat16: bool,
) -> None:
    model.train()
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs = model(inputs)
    loss = settings.loss(outputs.float(), labels)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()


def _describe(progress: Progress, bar: TaskID, epoch: int, epochs: int, reached: str) -> None:
    line = f"epoch {epoch}/{epochs}, {reached}"
    progress.update(bar, description=line)
    if not progress.console.is_terminal:
        progress.console.print(line)
