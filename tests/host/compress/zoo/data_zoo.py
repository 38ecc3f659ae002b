"""Data that a recipe's `[data]` may name: splits that do not fit, and augmentations good and bad."""

from __future__ import annotations

import compress_zoo
import numpy as np
import torch


def load_nan_calibrate(split):
    x, y = compress_zoo.load(split)
    if split == "calibrate":
        x[7, 0, 2, 2] = np.nan
    return x, y


def load_narrow_calibrate(split):
    x, y = compress_zoo.load(split)
    return (x[..., 3:] if split == "calibrate" else x), y


def load_narrow(split):
    x, y = compress_zoo.load(split)
    return x[..., 3:], y


def noisy(x, chance):
    return x + torch.randn(x.shape, generator=chance)


def unchanged(x, _chance):
    return x


def cropped(x, _chance):
    return x[..., 1:]


def counted(x, _chance):
    return len(x)


def raising(_x, _chance):
    raise RuntimeError("no such picture")


def size(_outputs, labels):
    """A metric that tells how many samples it was shown."""
    return float(len(labels))
