from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import logging
import tarfile
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from edgepress_models import fsdd, splits
from edgepress_models.sources import DataMissing, Unusable
from hypothesis import given
from hypothesis import strategies as st

SPEAKERS = ("anna", "george", "otto")
TAKES = 8


@functools.cache
def clips() -> tuple[fsdd.Clip, ...]:
    generator = np.random.default_rng(0)
    return tuple(
        fsdd.Clip(digit, speaker, take, generator.integers(-9999, 9999, 100 + take, dtype=np.int16))
        for digit in range(10)
        for speaker in SPEAKERS
        for take in range(TAKES)
    )


def archive(own: tuple[fsdd.Clip, ...], channels: int = 1, rate_hz: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for clip in reversed(own):
            content = io.BytesIO()
            with wave.open(content, "wb") as file:
                file.setnchannels(channels)
                file.setsampwidth(2)
                file.setframerate(rate_hz)
                file.writeframes(np.repeat(clip.samples, channels).astype("<i2").tobytes())
            entry = tarfile.TarInfo(f"free-spoken-digit-dataset-1.0.10/recordings/{clip.name}.wav")
            entry.size = len(content.getvalue())
            content.seek(0)
            packed.addfile(entry, content)
    return buffer.getvalue()


def put_npz(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    own = clips()
    np.savez(
        folder / "fsdd.npz",
        audio=np.concatenate([clip.samples for clip in own]),
        offsets=np.cumsum([0, *(len(clip.samples) for clip in own)]),
        digit=np.array([clip.digit for clip in own], np.uint8),
        speaker=np.array([clip.speaker for clip in own]),
        take=np.array([clip.take for clip in own], np.uint8),
    )
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, home: tuple[Path, str]) -> Iterator[None]:
    """A data set of 240 clips in the form of the real one, with its digest; its home has the archive."""
    served, url = home
    usual = fsdd.places
    monkeypatch.setattr(fsdd, "places", lambda environment: dataclasses.replace(usual(environment), home_urls=(url,)))
    monkeypatch.setattr(fsdd, "CALIBRATE_EACH", 1)
    monkeypatch.setattr(fsdd, "VALIDATE_EACH", 2)
    digest = hashlib.sha256()
    for clip in sorted(clips(), key=lambda clip: clip.name):
        digest.update(clip.name.encode() + b"\0" + clip.samples.tobytes())
    monkeypatch.setattr(fsdd, "CLIPS_SHA256", digest.hexdigest())
    (served / fsdd.ARCHIVE.name).write_bytes(archive(clips()))
    for cached in (fsdd.load, fsdd.load_unseen, fsdd._all):
        cached.cache_clear()
    yield
    for cached in (fsdd.load, fsdd.load_unseen, fsdd._all):
        cached.cache_clear()


def same(a: list[fsdd.Clip], b: list[fsdd.Clip]) -> bool:
    return [clip.name for clip in a] == [clip.name for clip in b] and all(
        np.array_equal(one.samples, other.samples) for one, other in zip(a, b, strict=True)
    )


def test_every_copy_gives_the_same_clips_in_the_same_order(tmp_path: Path) -> None:
    from_home = fsdd.read({"EDGEPRESS_DATA": str(tmp_path / "a")})
    from_npz = fsdd.read({"EDGEPRESS_DATA": str(put_npz(tmp_path / "b"))})
    assert len(from_home) == len(clips())
    assert same(from_home, from_npz)
    assert (tmp_path / "a" / "fsdd" / fsdd.ARCHIVE.name).exists()


def test_of_two_channels_the_first_is_taken() -> None:
    assert same(fsdd.ARCHIVE.unpack(archive(clips(), channels=2)), fsdd.ARCHIVE.unpack(archive(clips())))


def test_other_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="got 239 recordings"):
        fsdd.ARCHIVE.unpack(archive(clips()[1:]))
    with pytest.raises(Unusable, match="expected 16 bits at 8000 Hz"):
        fsdd.ARCHIVE.unpack(archive(clips()[:1], rate_hz=16000))


@given(st.binary(max_size=300), st.booleans())
def test_bytes_that_are_no_archive_are_refused(content: bytes, packed: bool) -> None:
    with pytest.raises(Unusable):
        fsdd.ARCHIVE.unpack(gzip.compress(content) if packed else content)


def test_a_damaged_npz_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put_npz(tmp_path) / "fsdd.npz"
    path.write_bytes(path.read_bytes()[:500])
    with caplog.at_level(logging.WARNING):
        assert len(fsdd.read({"EDGEPRESS_DATA": str(tmp_path)})) == len(clips())
    assert str(path) in caplog.text


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRESS_DATA", str(put_npz(tmp_path)))
    return tmp_path


def test_the_official_test_split_is_the_first_five_takes(here: Path) -> None:
    sizes = {"calibrate": 10, "validate": 20, "test": 150, "train": 60}
    for split in splits.SPLITS:
        features, digits = fsdd.load(split)
        assert features.shape == (sizes[split], 1, 49, 10)
        assert (features.dtype, digits.dtype) == (np.float32, np.int64)
        assert np.bincount(digits).tolist() == [sizes[split] // 10] * 10
        assert not features.flags.writeable
    train = fsdd.load("train")[0]
    assert np.allclose(train.mean((0, 1, 2)), 0, atol=1e-4)
    assert np.allclose(train.std((0, 1, 2)), 1, atol=1e-4)
    assert len(set(fsdd.load("train")[1][:20].tolist())) > 5


def test_no_clip_is_in_two_splits_and_the_unseen_speaker_is_in_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def number_of(samples: np.ndarray) -> float:
        return float(int.from_bytes(hashlib.sha256(samples.tobytes()).digest()[:2]))

    # Each clip's own number instead of its features: normalising keeps the order.
    monkeypatch.setattr(fsdd.speech, "mfcc", lambda samples: np.full((49, 10), number_of(samples), np.float32))
    known = {number_of(clip.samples): clip for clip in clips()}
    assert len(known) == len(clips())
    for load, held_back in (
        (fsdd.load, {clip.name for clip in clips() if clip.take < 5}),
        (fsdd.load_unseen, {clip.name for clip in clips() if clip.speaker == "george"}),
    ):
        seen = {split: load(split)[0][:, 0, 0, 0] for split in splits.SPLITS}
        everything = np.sort(np.concatenate(list(seen.values())))
        assert len(np.unique(everything)) == len(clips())
        by_value = dict(zip(everything.tolist(), [known[number].name for number in sorted(known)], strict=True))
        assert {by_value[value] for value in seen["test"].tolist()} == held_back


def test_the_commands_say_where_and_fill_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRESS_DATA", str(tmp_path))
    assert CliRunner().invoke(fsdd.main, ["fetch"], catch_exceptions=False).stdout.split() == [str(tmp_path / "fsdd")]
    where = [str(tmp_path / "fsdd" / fsdd.ARCHIVE.name)]
    assert CliRunner().invoke(fsdd.main, ["where"]).stdout.split() == where
    put_npz(tmp_path)
    assert CliRunner().invoke(fsdd.main, ["where"]).stdout.split() == [str(tmp_path / "fsdd.npz")]


def test_without_any_copy_one_line_says_what_to_do(tmp_path: Path, home: tuple[Path, str]) -> None:
    (home[0] / fsdd.ARCHIVE.name).unlink()
    with pytest.raises(DataMissing) as caught:
        fsdd.read({"EDGEPRESS_DATA": str(tmp_path)})
    assert "\n" not in str(caught.value)
    assert f"put fsdd.npz into {tmp_path}" in str(caught.value)
