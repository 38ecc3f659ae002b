from __future__ import annotations

import dataclasses
import gzip
import hashlib
import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from edgepress_models import mnist, sources, splits

COUNTS = {"train": 80, "test": 20}


def images_of(part: str) -> tuple[np.ndarray, np.ndarray]:
    """As many of each digit, sorted by digit."""
    generator = np.random.default_rng(len(part))
    count = COUNTS[part]
    labels = np.repeat(np.arange(10, dtype=np.uint8), count // 10)
    return generator.integers(0, 256, (count, 28, 28), dtype=np.uint8), labels


def put_npz(folder: Path, order: Callable[[int], np.ndarray] = np.arange) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part in COUNTS:
        images, labels = images_of(part)
        chosen = order(len(labels))
        arrays |= {f"{part}_images": images[chosen], f"{part}_labels": labels[chosen]}
    np.savez(folder / "mnist.npz", **arrays)
    return folder


def idx_file(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, home: tuple[Path, str]) -> Iterator[None]:
    """A data set of 80 + 20 images in MNIST's form, with its digests; its home has the IDX files, out of order."""
    served, url = home
    usual = mnist.places

    def at_home(environment: dict[str, str]) -> sources.Places:
        return dataclasses.replace(usual(environment), home_urls=(url,))

    monkeypatch.setattr(mnist, "places", at_home)
    monkeypatch.setattr(mnist, "CALIBRATE_EACH", 1)
    monkeypatch.setattr(mnist, "VALIDATE_EACH", 2)
    for part, count in COUNTS.items():
        images, labels = images_of(part)
        rows = sorted(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
        monkeypatch.setitem(mnist.ROWS_SHA256, part, hashlib.sha256(b"".join(rows)).hexdigest())
        mixed = np.random.default_rng(7).permutation(count)
        for members, array in ((mnist.IMAGES, images[mixed]), (mnist.LABELS, labels[mixed])):
            content = idx_file(array)
            member = sources.Gzip(members[part].name, len(content), hashlib.sha256(content).hexdigest())
            monkeypatch.setitem(members, part, member)
            (served / member.name).write_bytes(gzip.compress(content))
    for cached in (mnist.load, mnist._official):
        cached.cache_clear()
    yield
    for cached in (mnist.load, mnist._official):
        cached.cache_clear()


def environment(folder: Path) -> dict[str, str]:
    return {"EDGEPRESS_DATA": str(folder)}


@pytest.mark.parametrize("part", COUNTS)
def test_every_copy_gives_the_same_images_in_the_same_order(tmp_path: Path, part: str) -> None:
    from_home = mnist.official(part, environment(tmp_path / "a"))
    sorted_copy = mnist.official(part, environment(put_npz(tmp_path / "b")))
    reversed_copy = mnist.official(part, environment(put_npz(tmp_path / "c", lambda count: np.arange(count)[::-1])))
    assert np.array_equal(from_home, sorted_copy)
    assert np.array_equal(from_home, reversed_copy)
    images, labels = images_of(part)
    assert {row.tobytes() for row in from_home} == {
        bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
    }


def test_the_first_images_are_of_many_classes(tmp_path: Path) -> None:
    assert len(set(mnist.official("train", environment(put_npz(tmp_path)))[:20, 0].tolist())) > 5


@pytest.mark.parametrize("damage", ["cut", "other", "lacking"])
def test_a_damaged_npz_is_named_and_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = put_npz(tmp_path) / "mnist.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "lacking":
        np.savez(path, train_images=images_of("train")[0])
    else:
        images, labels = images_of("train")
        np.savez(path, train_images=images ^ 1, train_labels=labels)
    with caplog.at_level(logging.WARNING):
        found = mnist.official("train", environment(tmp_path))
    assert str(path) in caplog.text
    assert len(found) == COUNTS["train"]


def test_the_four_splits_share_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRESS_DATA", str(put_npz(tmp_path)))
    sizes = {"train": 50, "calibrate": 10, "validate": 20, "test": 20}
    seen = set()
    for split in splits.SPLITS:
        images, labels = mnist.load(split)
        assert images.shape == (sizes[split], 1, 28, 28)
        assert (images.dtype, labels.dtype) == (np.float32, np.int64)
        assert np.bincount(labels).tolist() == [sizes[split] // 10] * 10
        assert not images.flags.writeable
        seen |= {image.tobytes() for image in images}
    assert len(seen) == sum(sizes.values())
    with pytest.raises(ValueError, match="train, calibrate, validate, test, got 'dev'"):
        mnist.load("dev")


def test_the_commands_say_where_and_fill_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: tuple[Path, str]
) -> None:
    monkeypatch.setenv("EDGEPRESS_DATA", str(tmp_path))
    monkeypatch.setattr(mnist, "MEMBERS", (*mnist.IMAGES.values(), *mnist.LABELS.values()))
    filled = CliRunner().invoke(mnist.main, ["fetch"], catch_exceptions=False)
    assert filled.stdout.split() == [str(tmp_path / "mnist")]
    assert len(CliRunner().invoke(mnist.main, ["where"]).stdout.split()) == 4
    put_npz(tmp_path)
    assert CliRunner().invoke(mnist.main, ["where"]).stdout.split() == [str(tmp_path / "mnist.npz")]


def test_without_any_copy_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mnist, "places", lambda environment: sources.Places("MNIST", tmp_path, ("http://127.0.0.1:1/",), "put it there")
    )
    monkeypatch.setenv("EDGEPRESS_DATA", str(tmp_path))
    done = CliRunner().invoke(mnist.main, ["where"])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: MNIST: train-images-idx3-ubyte.gz not in")
    assert "put it there" in done.stderr
