from __future__ import annotations

import hashlib

import numpy as np
import pytest
from edgepress_models import fashion_mnist, splits

SIZES = {"train": 54_000, "calibrate": 1_000, "validate": 5_000, "test": 10_000}


@pytest.mark.parametrize("split", SIZES)
def test_a_split_has_its_size_shape_and_types(split: str) -> None:
    images, labels = fashion_mnist.load(split)
    assert images.shape == (SIZES[split], 1, 28, 28)
    assert images.dtype == np.float32
    assert labels.shape == (SIZES[split],)
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [SIZES[split] // 10] * 10


def test_no_image_is_in_two_splits() -> None:
    seen = {split: {image.tobytes() for image in fashion_mnist.load(split)[0]} for split in SIZES}
    assert {split: len(images) for split, images in seen.items()} == SIZES
    assert len(set.union(*seen.values())) == sum(SIZES.values())


def test_the_cut_is_the_same_everywhere() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 6_000)
    cut = splits.cut(labels, fashion_mnist.CALIBRATE_EACH, fashion_mnist.VALIDATE_EACH)
    digests = {name: hashlib.sha256(part.astype("<i8").tobytes()).hexdigest()[:16] for name, part in cut.items()}
    assert digests == {"train": "18f714a0269dd662", "calibrate": "1a002471c41c535e", "validate": "b2f4eff2c706d008"}


def test_the_pixels_are_normalised_by_what_the_training_images_measure() -> None:
    values = np.concatenate([fashion_mnist.load(split)[0].ravel() for split in ("train", "calibrate", "validate")])
    assert abs(values.mean(dtype=np.float64)) < 1e-3
    assert abs(values.std(dtype=np.float64) - 1) < 1e-3


def test_callers_share_arrays_that_none_can_change() -> None:
    images, labels = fashion_mnist.load("calibrate")
    assert fashion_mnist.load("calibrate")[0] is images
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 0


def test_an_unknown_split_is_refused_with_the_four_names() -> None:
    with pytest.raises(ValueError, match="train, calibrate, validate, test, got 'dev'"):
        fashion_mnist.load("dev")
