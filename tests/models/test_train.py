from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from edgepress_models import augment, fashion_mnist, lenet5, train
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shorten every split to its first 1,024 images, and note the order in which splits are read."""
    whole, noted = fashion_mnist.load, []

    def short(split: str) -> tuple[np.ndarray, np.ndarray]:
        noted.append(split)
        images, labels = whole(split)
        return images[:1024], labels[:1024]

    monkeypatch.setattr(fashion_mnist, "load", short)
    return noted


def run(out: Path, *options: str) -> dict[str, object]:
    done = CliRunner().invoke(train.main, ["lenet5", "--out", str(out), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads((out / "lenet5.json").read_text())


def test_a_run_leaves_weights_and_what_it_measured(tmp_path: Path, reads: list[str]) -> None:
    record = run(tmp_path, "--epochs", "2", "--seed", "3")
    model = lenet5.build()
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "lenet5.safetensors"))
    assert train.accuracy(model, "test") == record["test_accuracy"]
    assert train.accuracy(model, "validate") == record["validate_accuracy"]
    assert record | {"epochs": 2, "seed": 3, "threads": 1, "torch": torch.__version__, "params": 61_706} == record


def test_test_is_read_once_and_last(tmp_path: Path, reads: list[str]) -> None:
    run(tmp_path, "--epochs", "2")
    assert reads == ["train", "validate", "validate", "test"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path, reads: list[str]) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(tmp_path / name, "--epochs", "1", "--seed", seed)
    a, b, c = ((tmp_path / name / "lenet5.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("arguments", [["alexnet"], ["lenet5", "--epochs", "0"]])
def test_a_mistake_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(train.main, arguments)
    assert done.exit_code == 2
    assert "Error: Invalid value" in done.stderr


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(0, 3))
def test_augmentation_moves_pixels_and_loses_none_inside_the_margin(seed: int, count: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 1, 12, 12)
    images[:, :, shift : 12 - shift, shift : 12 - shift] = torch.rand(
        count, 1, 12 - 2 * shift, 12 - 2 * shift, generator=generator
    )
    moved = augment.shift_and_flip(images, generator, shift)
    assert moved.shape == images.shape
    assert torch.equal(moved.flatten(1).sort(1).values, images.flatten(1).sort(1).values)


def test_without_shift_half_the_images_are_mirrored() -> None:
    images = torch.rand(400, 1, 4, 4)
    moved = augment.shift_and_flip(images, torch.Generator().manual_seed(0), max_shift=0)
    same = (moved == images).flatten(1).all(1)
    mirrored = (moved == images.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250
