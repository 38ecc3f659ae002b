"""Train a model of the zoo, and ship what was measured.

`python -m edgepress_models.train resnet8` writes `weights/resnet8.safetensors` and `weights/resnet8.json`. The epoch
that is best on the validate split is kept; the test split is read once, after that choice. A training that was stopped
goes on when the same command is given again.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from edgepress_models import checkpoint, sources, training
from edgepress_models.zoo import ZOO

_WEIGHTS = Path(__file__).parent / "weights"


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
    options = training.Options(epochs or settings.epochs, seed, bfloat16)
    resume = out / f"{name}.resume"
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as progress:
            trained = training.train(settings, options, progress, resume)
        reached = training.measure(trained.model, settings, "test")
    except (sources.DataMissing, training.OtherTraining) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error
    metric = settings.metric.name
    measured = {
        "model": name,
        "data": settings.data,
        "params": sum(parameter.numel() for parameter in trained.model.parameters()),
        f"test_{metric}": reached,
        f"validate_{metric}": trained.validate,
        "best_epoch": trained.epoch,
        "epochs": options.epochs,
        "seed": seed,
        "seconds": round(trained.seconds, 1),
        "threads": threads,
        "torch": torch.__version__,
        "command": shlex.join(["python", "-m", "edgepress_models.train", *sys.argv[1:]]),
    }
    weights = checkpoint.save(trained.model, measured, name, out)
    resume.unlink()
    click.echo(
        f"{weights}: {metric} on test {reached:.4f}, on validate {trained.validate:.4f}, {measured['seconds']} s"
    )


if __name__ == "__main__":
    main(prog_name="python -m edgepress_models.train")
