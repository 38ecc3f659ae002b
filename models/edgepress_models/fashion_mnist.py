"""Fashion-MNIST in four splits that never overlap.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST", 2017; 60,000 training and 10,000 test images in ten classes; licence
MIT.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgepress_models import finding, mnist_family, packages, sources, splits
from edgepress_models.mnist_family import CALIBRATE_EACH, VALIDATE_EACH, Images, Labels, Pixels

SPLITS = splits.SPLITS
# Over all pixels of the 60,000 training images, scaled to [0, 1].
MEAN = 0.2860
STD = 0.3530

IMAGES = mnist_family.images(
    train="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    test="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
)
LABELS = mnist_family.labels(
    train="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    test="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
MEMBERS = (*IMAGES.values(), *LABELS.values())
DEBIAN = packages.Debian("dataset-fashion-mnist", Path("usr/share/datasets/fashion-mnist"))


def places(environment: Mapping[str, str]) -> sources.Places:
    """Return where to look: the cache folder, Debian's folder, the data set's home."""
    return sources.Places(
        "Fashion-MNIST",
        sources.cache_root(environment) / "fashion-mnist",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        f"run `apt-get install {DEBIAN.name}`, or without root `python -m edgepress_models.fashion_mnist fetch`",
        DEBIAN,
    )


@functools.cache
def load(split: str) -> tuple[Images, Labels]:
    """Return the images, float32 (N, 1, 28, 28), normalised to mean 0 and deviation 1, and their labels, int64 (N,).

    `calibrate` (1,000) and `validate` (5,000) are cut from the 60,000 training images, equally many of each class;
    `train` is the remaining 54,000; `test` is the official 10,000. Callers share the arrays, so they are read-only.

    Raises:
        ValueError: there is no such split.
        sources.DataMissing: the data set is in none of the places; the message says what to install.
    """
    return mnist_family.load(
        split, _official, calibrate_each=CALIBRATE_EACH, validate_each=VALIDATE_EACH, mean=MEAN, std=STD
    )


@functools.cache
def _official(part: str) -> tuple[Pixels, Pixels]:
    return mnist_family.read(IMAGES[part], LABELS[part], places(os.environ))


def _where() -> Iterator[str]:
    return (sources.where(member, places(os.environ)) for member in MEMBERS)


main = finding.commands(_where, lambda: sources.fetch(MEMBERS, places(os.environ)))

if __name__ == "__main__":
    main(prog_name="python -m edgepress_models.fashion_mnist")
