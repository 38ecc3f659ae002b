"""Fashion-MNIST with noise to take away: pairs of a noisy image and the clean one, in the splits of fashion_mnist."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from edgepress_models import fashion_mnist, splits

# In deviations of the pixels: the images have deviation 1.
NOISE = 0.5

Images = npt.NDArray[np.float32]


@functools.cache
def load(split: str) -> tuple[Images, Images]:
    """Return noisy and clean images, both float32 (N, 1, 28, 28); an image has the same noise whenever it is loaded.

    Raises:
        ValueError: there is no such split.
        sources.DataMissing: the data set is in none of the places; the message says what to install.
    """
    clean, _ = fashion_mnist.load(split)
    noisy = np.random.default_rng(splits.SPLITS.index(split)).standard_normal(clean.shape, np.float32)
    noisy *= np.float32(NOISE)
    noisy += clean
    splits.shared(noisy)
    return noisy, clean
