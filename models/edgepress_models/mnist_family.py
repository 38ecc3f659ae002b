"""What MNIST and the data sets in its form have in common: ten classes of 28×28 pixels, in four IDX files.

60,000 images are for training, 10,000 for testing. The files are named and sized alike everywhere; their digests tell
the data sets apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgepress_models import idx, sources, splits
from edgepress_models.sources import Gzip

CALIBRATE_EACH = 100
VALIDATE_EACH = 500
"""Of each class, cut from the training images."""

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Official = Callable[[str], tuple[Pixels, Pixels]]
"""`train` or `test` → the official images (N, 28, 28) and labels (N,), as bytes."""


def images(*, train: str, test: str) -> dict[str, Gzip]:
    """Return the two files of images, from the SHA-256 of what they hold."""
    return {
        "train": Gzip("train-images-idx3-ubyte.gz", 47_040_016, train),
        "test": Gzip("t10k-images-idx3-ubyte.gz", 7_840_016, test),
    }


def labels(*, train: str, test: str) -> dict[str, Gzip]:
    """Return the two files of labels, from the SHA-256 of what they hold."""
    return {
        "train": Gzip("train-labels-idx1-ubyte.gz", 60_008, train),
        "test": Gzip("t10k-labels-idx1-ubyte.gz", 10_008, test),
    }


def read(of_images: Gzip, of_labels: Gzip, places: sources.Places) -> tuple[Pixels, Pixels]:
    """Return what two files hold: images (N, 28, 28) and labels (N,), as bytes.

    Raises:
        sources.DataMissing: one of the files is in none of the places; the message says what to do.
    """
    found = idx.parse(sources.read(of_images, places), dimensions=3)
    return found, idx.parse(sources.read(of_labels, places), dimensions=1)


def load(
    split: str, official: Official, *, calibrate_each: int, validate_each: int, mean: float, std: float
) -> tuple[Images, Labels]:
    """Return one of the four splits: images, float32 (N, 1, 28, 28), normalised, and labels, int64 (N,), read-only.

    `calibrate` and `validate` take so many of each class of the training images, `train` takes the rest; `test` is the
    official one. `mean` and `std` are of the training pixels, scaled to [0, 1].

    Raises:
        ValueError: there is no such split.
    """
    splits.check(split)
    found, classes = official("test" if split == "test" else "train")
    if split != "test":
        chosen = splits.cut(classes, calibrate_each, validate_each)[split]
        found, classes = found[chosen], classes[chosen]
    return idx.normalised(found, classes, mean, std)
