"""Train a model of the zoo on Fashion-MNIST, and ship what was measured.

`python -m edgepress_models.train resnet8` writes `weights/resnet8.safetensors` and `weights/resnet8.json`. The epoch
that is best on the validate split is kept; the test split is read once, after that choice.
"""

from __future__ import annotations

import copy
import io
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn

from edgepress_models import augment, checkpoint, fashion_mnist, files, lenet5, resnet8, sources, vgg16

_WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Settings:
    """How one architecture is trained: gradient descent with Nesterov momentum and a one-cycle learning rate."""

    build: Callable[[], nn.Module]
    epochs: int
    peak_learning_rate: float
    weight_decay: float
    batch: int = 256


ZOO = {
    "resnet8": Settings(resnet8.build, epochs=18, peak_learning_rate=0.2, weight_decay=5e-4),
    "lenet5": Settings(lenet5.build, epochs=30, peak_learning_rate=0.06, weight_decay=5e-4),
    "vgg16": Settings(vgg16.build, epochs=20, peak_learning_rate=0.05, weight_decay=5e-4),
}


@dataclass(frozen=True)
class Running:
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


def train(
    settings: Settings, epochs: int, seed: int, bfloat16: bool, progress: Progress, resume: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model at its best epoch, and that epoch's number and accuracy on the validate split.

    The state after each epoch is kept in the file `resume`; a training that was stopped goes on from it. With
    `bfloat16` the forward pass runs under autocast, which is faster on processors with AVX512-BF16; the weights stay
    float32.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = settings.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in the stub
    images, labels = map(torch.tensor, fashion_mnist.load("train"))
    steps_per_epoch = len(labels) // settings.batch
    optimizer = torch.optim.SGD(
        model.parameters(), settings.peak_learning_rate, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.peak_learning_rate, total_steps=epochs * steps_per_epoch, pct_start=0.2
    )
    bar = progress.add_task("training", total=epochs * steps_per_epoch)
    best: dict[str, Any] = {"epoch": 0, "validate_accuracy": -1.0}
    best_model = model
    state = Running(model, optimizer, schedule, generator)
    first = 1
    if resume.exists():
        kept = torch.load(resume, weights_only=True)
        state.restore(kept)
        best, first = kept["best"], kept["epoch"] + 1
        best_model = copy.deepcopy(model)
        best_model.load_state_dict(kept["best_model"])
        progress.advance(bar, kept["epoch"] * steps_per_epoch)
    for epoch in range(first, epochs + 1):
        order = torch.randperm(len(labels), generator=generator)[: steps_per_epoch * settings.batch]
        for chosen in torch.split(order, settings.batch):
            batch = augment.shift_and_flip(images[chosen], generator)
            _descend(model, batch, labels[chosen], optimizer, bfloat16)
            schedule.step()
            progress.advance(bar)
        reached = accuracy(model, "validate")
        if reached > best["validate_accuracy"]:
            best = {"epoch": epoch, "validate_accuracy": reached}
            best_model = copy.deepcopy(model)
        kept = state.kept() | {"epoch": epoch, "best": best, "best_model": best_model.state_dict()}
        _write(resume, kept)
        _describe(progress, bar, epoch, epochs, reached)
    return best_model.eval(), best


def _write(path: Path, kept: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    files.write_atomically(path, buffer.getvalue())


def _descend(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer, bfloat16: bool
) -> None:
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(images.contiguous(memory_format=torch.channels_last))
    loss = nn.functional.cross_entropy(logits.float(), labels)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()


def accuracy(model: nn.Module, split: str, batch: int = 500) -> float:
    """Return the share of a split's images, 0 to 1, whose largest logit is right; the model is left in eval mode."""
    images, labels = map(torch.tensor, fashion_mnist.load(split))
    model.eval()
    with torch.inference_mode():
        chosen = torch.cat([model(some).argmax(1) for some in torch.split(images, batch)])
    return int((chosen == labels).sum()) / len(labels)


def _describe(progress: Progress, bar: TaskID, epoch: int, epochs: int, reached: float) -> None:
    line = f"epoch {epoch}/{epochs}, validate {reached:.2%}"
    progress.update(bar, description=line)
    if not progress.console.is_terminal:
        progress.console.print(line)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="MODEL", type=click.Choice(list(ZOO)))
@click.option("--epochs", type=click.IntRange(min=1), help="Default: what the shipped weights were trained for.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=_WEIGHTS, help="Default: the package's."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="More are slower when busy.")
@click.option("--bfloat16", is_flag=True, help="Run the forward pass in bfloat16; faster with AVX512-BF16.")
def main(name: str, epochs: int | None, seed: int, out: Path, threads: int, bfloat16: bool) -> None:
    """Train MODEL, measure it, and write its weights and their record."""
    settings = ZOO[name]
    torch.set_num_threads(threads)
    started_s = time.monotonic()
    resume = out / f"{name}.resume"
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as progress:
            model, best = train(settings, epochs or settings.epochs, seed, bfloat16, progress, resume)
    except sources.DataMissing as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error
    measured = {
        "model": name,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "test_accuracy": accuracy(model, "test"),
        "validate_accuracy": best["validate_accuracy"],
        "best_epoch": best["epoch"],
        "epochs": epochs or settings.epochs,
        "seed": seed,
        "seconds": round(time.monotonic() - started_s, 1),
        "threads": threads,
        "torch": torch.__version__,
        "command": shlex.join(["python", "-m", "edgepress_models.train", *sys.argv[1:]]),
    }
    weights = checkpoint.save(model, measured, name, out)
    resume.unlink()
    reached = f"test {measured['test_accuracy']:.2%}, validate {measured['validate_accuracy']:.2%}"
    click.echo(f"{weights}: {reached}, {measured['seconds']} s")


if __name__ == "__main__":
    main(prog_name="python -m edgepress_models.train")
