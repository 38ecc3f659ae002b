"""Shoulder exercises seen by a smartwatch: ten subjects, seven exercises, six channels at 50 Hz, split by subject.

Source: Burns, Leung, Hardisty, Whyne, Henry, McLachlin, "Shoulder physiotherapy exercise recognition: machine learning
the inertial signals from a smartwatch", Physiological Measurement, 2018; carried by the Python package seglearn
(Burns, Whyne, 2018; licence BSD-3-Clause). The package is not imported: only its data file is read.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgepress_models import finding, packages, sources, splits

RATE_HZ = 50
WINDOW_SAMPLES = 128
CHANNELS = 6
CLASSES = 7
# By number, chosen before any result was known.
SUBJECTS = {"train": (1, 2, 3, 4, 5, 6), "validate": (7, 8), "test": (9, 10)}
# The end of each training recording, as a share of it, which only calibration sees.
CALIBRATE_SHARE = 0.1
TRAIN_STRIDE_SAMPLES = 32

Windows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Recording(NamedTuple):
    """One exercise of one subject: values float32 (samples, 6), accelerations then turning rates."""

    subject: int
    exercise: int
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pickled:
    """The data file of the package. It is a pickle, so that nothing but the very file is ever opened."""

    name: str = "watch_dataset.npy"
    sha256: str = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
    longest_bytes: int = 18_118_091

    def unpack(self, packed: bytes) -> list[Recording]:
        """Return the recordings.

        Raises:
            Unusable: the bytes are those of another file.
        """
        found = hashlib.sha256(packed).hexdigest()
        if found != self.sha256:
            raise sources.Unusable(f"expected a file with SHA-256 {self.sha256}, got {len(packed)} bytes with {found}")
        data = np.load(io.BytesIO(packed), allow_pickle=True).item()
        said = zip(data["subject"], data["y"], data["X"], strict=True)
        return [Recording(int(subject), int(y), values.astype(np.float32)) for subject, y, values in said]


FILE = Pickled()
WHEEL = packages.Wheel("seglearn", "1.2.5", Path("data"))


def places(environment: Mapping[str, str]) -> sources.Places:
    """Return where to look: the cache folder, then the installed package."""
    return sources.Places(
        "The watch data",
        sources.cache_root(environment) / "activity",
        (),
        "run `python -m edgepress_models.activity fetch`, which takes the file out of the Python package seglearn",
        WHEEL,
    )


@functools.cache
def load(split: str) -> tuple[Windows, Labels]:
    """Return windows of 2.56 s, float32 (N, 128, 6), and the exercises, int64 (N,).

    No subject is in two of `train`, `validate` and `test`; `calibrate` is the last tenth of each training recording,
    which `train` does not see. Windows of `train` overlap, those of the others do not. Each channel is normalised by
    what `train` measures. Callers share the arrays, so they are read-only.

    Raises:
        ValueError: there is no such split.
        sources.DataMissing: the data set is in none of the places; the message says what to do.
    """
    splits.check(split)
    windows, labels = cut(_recordings(), split)
    train, _ = cut(_recordings(), "train")
    measured = train.reshape(-1, CHANNELS)
    scaled = ((windows - measured.mean(0)) / measured.std(0)).astype(np.float32)
    splits.shared(scaled, labels)
    return scaled, labels


def cut(recordings: Iterable[Recording], split: str) -> tuple[Windows, Labels]:
    """Return the windows (N, 128, 6) of a split as they were measured, and the exercises (N,), in a mixed order."""
    stride = TRAIN_STRIDE_SAMPLES if split == "train" else WINDOW_SAMPLES
    chosen = [one for one in recordings if one.subject in SUBJECTS.get(split, SUBJECTS["train"])]
    windows, labels = [], []
    for one in chosen:
        seen = _seen(one.values, split)
        for start in range(0, len(seen) - WINDOW_SAMPLES + 1, stride):
            windows.append(seen[start : start + WINDOW_SAMPLES])
            labels.append(one.exercise)
    order = np.random.default_rng(0).permutation(len(windows))
    return np.stack(windows)[order], np.array(labels, np.int64)[order]


def _seen(values: npt.NDArray[np.float32], split: str) -> npt.NDArray[np.float32]:
    if split not in ("train", "calibrate"):
        return values
    # A short recording still gives calibration one window.
    kept_back = max(WINDOW_SAMPLES, round(CALIBRATE_SHARE * len(values)))
    return values[:-kept_back] if split == "train" else values[-kept_back:]


@functools.cache
def _recordings() -> list[Recording]:
    return sources.read(FILE, places(os.environ))


def _where() -> Iterator[str]:
    return iter([sources.where(FILE, places(os.environ))])


main = finding.commands(_where, lambda: sources.fetch([FILE], places(os.environ)))

if __name__ == "__main__":
    main(prog_name="python -m edgepress_models.activity")
