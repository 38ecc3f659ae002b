"""MNIST in four splits that never overlap.

Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits"; 60,000 training and 10,000 test images in
ten classes; licence CC BY-SA 3.0.

It is read from `mnist.npz` in the cache folder (the arrays `train_images`, `train_labels`, `test_images`,
`test_labels`, in any order of samples), or else from the four IDX files. Either way the same samples come in the same
order.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepress_models import finding, mnist_family, npz, sources, splits
from edgepress_models.mnist_family import CALIBRATE_EACH, VALIDATE_EACH, Images, Labels, Pixels

# Over all pixels of the 60,000 training images, scaled to [0, 1].
MEAN = 0.1307
STD = 0.3081

IMAGES = mnist_family.images(
    train="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    test="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
)
LABELS = mnist_family.labels(
    train="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    test="ff7bcfd416de33731a308c3f266cd351222c34898ecbeaf847f06e48f7ec33f2",
)
MEMBERS = (*IMAGES.values(), *LABELS.values())
# Of the labels and pixels as rows of 785 bytes, in ascending order.
ROWS_SHA256 = {
    "train": "da6370735bf1d490f086dde49c15f2ed0480ad05dc7c70abf5d36bf471d5e312",
    "test": "0c7bc63f656fb2440dc2b5bea4ff3ac8632e305b73ec1dc88141a32d36204fac",
}


def places(environment: Mapping[str, str]) -> sources.Places:
    """Return where to look for the IDX files: the cache folder, then two mirrors of the data set's home."""
    root = sources.cache_root(environment)
    return sources.Places(
        "MNIST",
        root / "mnist",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        f"run `python -m edgepress_models.mnist fetch` where there is a network, or put mnist.npz into {root}",
    )


@functools.cache
def load(split: str) -> tuple[Images, Labels]:
    """Return the images, float32 (N, 1, 28, 28), normalised to mean 0 and deviation 1, and their labels, int64 (N,).

    `calibrate` (1,000) and `validate` (5,000) are cut from the 60,000 training images, equally many of each class;
    `train` is the remaining 54,000; `test` is the official 10,000. Callers share the arrays, so they are read-only.

    Raises:
        ValueError: there is no such split.
        sources.DataMissing: the data set is in none of the places; the message says what to do.
    """
    return mnist_family.load(
        split, _official, calibrate_each=CALIBRATE_EACH, validate_each=VALIDATE_EACH, mean=MEAN, std=STD
    )


@functools.cache
def _official(part: str) -> tuple[Pixels, Pixels]:
    rows = official(part, os.environ)
    return rows[:, 1:].reshape(-1, 28, 28), rows[:, 0]


def official(part: str, environment: Mapping[str, str]) -> Pixels:
    """Return the official `train` or `test` images as rows of a label and 784 pixels, (N, 785), in one fixed order.

    Raises:
        sources.DataMissing: the data set is in none of the places; the message says what to do.
    """
    rows = _from_npz(part, environment)
    if rows is None:
        rows = _rows(*mnist_family.read(IMAGES[part], LABELS[part], places(environment)))
    return rows[splits.in_one_order(rows)]


def _npz(environment: Mapping[str, str]) -> Path:
    return sources.cache_root(environment) / "mnist.npz"


def _from_npz(part: str, environment: Mapping[str, str]) -> Pixels | None:
    """Return the rows of a checked file; None where it is not there, or is not MNIST, which is logged."""

    def checked(arrays: Mapping[str, npt.NDArray[Any]]) -> Pixels:
        rows = _rows(arrays[f"{part}_images"], arrays[f"{part}_labels"])
        found = hashlib.sha256(np.sort(splits.whole(rows)).tobytes()).hexdigest()
        if found != ROWS_SHA256[part]:
            raise sources.Unusable(f"expected rows with SHA-256 {ROWS_SHA256[part]}, got {found}")
        return rows

    return npz.first(_npz(environment), checked)


def _rows(images: Pixels, labels: Pixels) -> Pixels:
    return np.concatenate([labels.astype(np.uint8)[:, np.newaxis], images.reshape(len(images), -1)], axis=1)


def _where() -> Iterator[str]:
    if all(_from_npz(part, os.environ) is not None for part in ROWS_SHA256):
        return iter([str(_npz(os.environ))])
    return (sources.where(member, places(os.environ)) for member in MEMBERS)


main = finding.commands(_where, lambda: sources.fetch(MEMBERS, places(os.environ)))

if __name__ == "__main__":
    main(prog_name="python -m edgepress_models.mnist")
