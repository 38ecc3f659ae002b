"""The Free Spoken Digit Dataset: ten English digits, 3,000 clips of six speakers at 8 kHz, in four splits.

Source: Jackson et al., "Free Spoken Digit Dataset", version 1.0.10, github.com/Jakobovski/free-spoken-digit-dataset;
licence CC BY-SA 4.0. Takes 0 to 4 are the official test split.

It is read from `fsdd.npz` in the cache folder (`audio` end to end, `offsets`, `digit`, `speaker`, `take`), or else from
the archive of its home. `load` gives the official test split, `load_unseen` a speaker whom training never heard.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import tarfile
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgepress_models import finding, npz, sources, speech, splits
from edgepress_models.sources import Unusable

CALIBRATE_EACH = 20
VALIDATE_EACH = 30
OFFICIAL_TEST_TAKES = 5
# The first by name, chosen before any result was known.
UNSEEN_SPEAKER = "george"
# Of all clips by name: the name, a zero byte, and the samples as little-endian 16-bit numbers.
CLIPS_SHA256 = "f54f4a3b5e37422fc3f197048d94efa3025f80d0b68a4cbe61cbc21fc4b760b1"

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_NAME = re.compile(r"(?:^|/)recordings/(\d)_([a-z]+)_(\d+)\.wav$")
_LONGEST_ARCHIVE_BYTES = 64_000_000
_LONGEST_UNPACKED_BYTES = 128_000_000


class Clip(NamedTuple):
    """One recording: who said what, which take it is, and its samples, int16 (N,) at 8 kHz."""

    digit: int
    speaker: str
    take: int
    samples: npt.NDArray[np.int16]

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return f"{self.digit}_{self.speaker}_{self.take}"


@dataclass(frozen=True)
class Archive:
    """The archive of one version, as the data set's home packs it."""

    name: str = "v1.0.10.tar.gz"
    longest_bytes: int = _LONGEST_ARCHIVE_BYTES

    def unpack(self, packed: bytes) -> list[Clip]:
        """Return the recordings, checked.

        Raises:
            Unusable: the bytes are no archive of recordings, or of other ones.
        """
        content = sources.gunzip(packed, _LONGEST_UNPACKED_BYTES)
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
                clips = [
                    Clip(int(found[1]), found[2], int(found[3]), _samples(archive.extractfile(file)))
                    for file in archive
                    if file.isfile() and (found := _NAME.search(file.name))
                ]
        except (tarfile.TarError, wave.Error, EOFError) as error:
            raise Unusable(f"expected an archive of recordings, got one that cannot be read ({error})") from error
        return checked(clips)


ARCHIVE = Archive()


def places(environment: Mapping[str, str]) -> sources.Places:
    """Return where to look for the archive: the cache folder, then the data set's home."""
    root = sources.cache_root(environment)
    return sources.Places(
        "Free Spoken Digit Dataset",
        root / "fsdd",
        ("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/",),
        f"run `python -m edgepress_models.fsdd fetch` where there is a network, or put fsdd.npz into {root}",
    )


@functools.cache
def load(split: str) -> tuple[Features, Labels]:
    """Return the features, float32 (N, 1, 49, 10), and the digits, int64 (N,), by the official split.

    `test` (300) is takes 0 to 4 of all six speakers; `calibrate` (200) and `validate` (300) are cut from the other
    2,700, equally many of each digit; `train` is the remaining 2,200. The features are MFCCs (see speech), normalised
    by what `train` measures. Callers share the arrays, so they are read-only.

    Raises:
        ValueError: there is no such split.
        sources.DataMissing: the data set is in none of the places; the message says what to do.
    """
    splits.check(split)
    clips, features = _all()
    return _split(split, clips, features, np.array([clip.take < OFFICIAL_TEST_TAKES for clip in clips]))


@functools.cache
def load_unseen(split: str) -> tuple[Features, Labels]:
    """Return the splits of a data set whose `test` is all 500 clips of one speaker, who is in no other split.

    Raises:
        ValueError: there is no such split.
        sources.DataMissing: the data set is in none of the places; the message says what to do.
    """
    splits.check(split)
    clips, features = _all()
    return _split(split, clips, features, np.array([clip.speaker == UNSEEN_SPEAKER for clip in clips]))


def read(environment: Mapping[str, str]) -> list[Clip]:
    """Return all recordings, by name.

    Raises:
        sources.DataMissing: the data set is in none of the places; the message says what to do.
    """
    found = npz.first(_npz(environment), _from_arrays)
    return sources.read(ARCHIVE, places(environment)) if found is None else found


def checked(clips: list[Clip]) -> list[Clip]:
    """Return the recordings by name, if they are those of the data set.

    Raises:
        Unusable: they are other ones.
    """
    by_name = sorted(clips, key=lambda clip: clip.name)
    digest = hashlib.sha256()
    for clip in by_name:
        digest.update(clip.name.encode() + b"\0" + clip.samples.astype("<i2").tobytes())
    if digest.hexdigest() != CLIPS_SHA256:
        raise Unusable(
            f"expected recordings with SHA-256 {CLIPS_SHA256}, got {len(clips)} recordings with {digest.hexdigest()}"
        )
    return by_name


@functools.cache
def _all() -> tuple[list[Clip], Features]:
    """Return all recordings in an order that looks random, and their features (N, 49, 10)."""
    clips = read(os.environ)
    order = np.random.default_rng(0).permutation(len(clips))
    mixed = [clips[number] for number in order]
    return mixed, np.stack([speech.mfcc(clip.samples) for clip in mixed])


def _split(
    split: str, clips: list[Clip], features: Features, for_test: npt.NDArray[np.bool_]
) -> tuple[Features, Labels]:
    labels = np.array([clip.digit for clip in clips], np.int64)
    others = np.flatnonzero(~for_test)
    parts = {name: others[part] for name, part in splits.cut(labels[others], CALIBRATE_EACH, VALIDATE_EACH).items()}
    train = features[parts["train"]].reshape(-1, speech.COEFFICIENTS)
    chosen = np.flatnonzero(for_test) if split == "test" else parts[split]
    scaled = ((features[chosen] - train.mean(0)) / train.std(0)).astype(np.float32)[:, np.newaxis]
    digits = labels[chosen]
    splits.shared(scaled, digits)
    return scaled, digits


def _npz(environment: Mapping[str, str]) -> Path:
    return sources.cache_root(environment) / "fsdd.npz"


def _from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> list[Clip]:
    said = zip(arrays["digit"], arrays["speaker"], arrays["take"], strict=True)
    samples = np.split(arrays["audio"], arrays["offsets"][1:-1])
    clips = zip(said, samples, strict=True)
    return checked([Clip(int(digit), str(speaker), int(take), own) for (digit, speaker, take), own in clips])


def _samples(stream: Any) -> npt.NDArray[np.int16]:
    """Return the samples of a .wav file; of its channels the first."""
    with wave.open(stream) as file:
        if (file.getsampwidth(), file.getframerate()) != (2, speech.RATE_HZ):
            raise Unusable(f"expected 16 bits at {speech.RATE_HZ} Hz, got {file.getparams()}")
        frames = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return frames.reshape(-1, file.getnchannels())[:, 0].astype(np.int16)


def _where() -> Iterator[str]:
    path = _npz(os.environ)
    if npz.first(path, _from_arrays) is not None:
        return iter([str(path)])
    return iter([sources.where(ARCHIVE, places(os.environ))])


main = finding.commands(_where, lambda: sources.fetch([ARCHIVE], places(os.environ)))

if __name__ == "__main__":
    main(prog_name="python -m edgepress_models.fsdd")
