"""Fashion-MNIST in four splits that never overlap.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST", 2017; 60,000 training and 10,000 test images in ten classes.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import click
import numpy as np
import numpy.typing as npt

from edgepress_models import idx, sources

SPLITS = ("train", "calibrate", "validate", "test")
CLASSES = 10
CALIBRATE_COUNT = 1_000
VALIDATE_COUNT = 5_000
# Over all pixels of the 60,000 training images, scaled to [0, 1].
MEAN = 0.2860
STD = 0.3530

_SPLIT_SEED = 0

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@functools.cache
def load(split: str) -> tuple[Images, Labels]:
    """Return the images, float32 (N, 1, 28, 28), normalised to mean 0 and deviation 1, and their labels, int64 (N,).

    `calibrate` (1,000) and `validate` (5,000) are cut from the 60,000 training images, equally many of each class;
    `train` is the remaining 54,000; `test` is the official 10,000. Callers share the arrays, so they are read-only.

    Raises:
        ValueError: there is no such split.
        sources.DataMissing: the data set is in none of the places; the message says what to install.
    """
    if split not in SPLITS:
        raise ValueError(f"expected one of the splits {', '.join(SPLITS)}, got {split!r}")
    if split == "test":
        images, labels = _official("test")
    else:
        images, labels = _official("train")
        chosen = split_indices(labels)[split]
        images, labels = images[chosen], labels[chosen]
    # In place, because the training images take 170 MB as float32.
    scaled = images.astype(np.float32)[:, np.newaxis]
    scaled /= np.float32(255 * STD)
    scaled -= np.float32(MEAN / STD)
    wide = labels.astype(np.int64)
    scaled.setflags(write=False)
    wide.setflags(write=False)
    return scaled, wide


def split_indices(labels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.int64]]:
    """Return which of the training images belong to `train`, `calibrate` and `validate`, in ascending order.

    >>> [len(part) for part in split_indices(np.repeat(np.arange(10, dtype=np.uint8), 6_000)).values()]
    [54000, 1000, 5000]
    """
    generator = np.random.default_rng(_SPLIT_SEED)
    calibrate_each, validate_each = CALIBRATE_COUNT // CLASSES, VALIDATE_COUNT // CLASSES
    parts: dict[str, list[npt.NDArray[np.int64]]] = {"train": [], "calibrate": [], "validate": []}
    for label in range(CLASSES):
        shuffled = generator.permutation(np.flatnonzero(labels == label))
        calibrate, validate, train = np.split(shuffled, [calibrate_each, calibrate_each + validate_each])
        parts["train"].append(train)
        parts["calibrate"].append(calibrate)
        parts["validate"].append(validate)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


@functools.cache
def _official(part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the official images (N, 28, 28) and labels (N,), as bytes."""
    places = sources.Places.of(os.environ)
    images = idx.parse(sources.read(sources.IMAGES[part], places), dimensions=3)
    labels = idx.parse(sources.read(sources.LABELS[part], places), dimensions=1)
    return images, labels


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Find or fetch the data set."""


@main.command()
def where() -> None:
    """Print where each file is found, after checking it; what only the home of the data set has is downloaded."""
    with _one_line_errors():
        for member in sources.MEMBERS:
            click.echo(sources.where(member, sources.Places.of(os.environ)))


@main.command()
def fetch() -> None:
    """Fill the cache folder without root, and print the folder."""
    with _one_line_errors():
        click.echo(sources.fetch(sources.Places.of(os.environ)))


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except sources.DataMissing as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main(prog_name="python -m edgepress_models.fashion_mnist")
