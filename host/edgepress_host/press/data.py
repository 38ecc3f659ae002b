"""The user's data: splits read once each, checked, and never the test split before the report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from edgepress_protocol.errors import UsageError

from edgepress_host.press.loading import call_user
from edgepress_host.text import one_line

SPLITS = ("train", "calibrate", "validate")


class Samples(msgspec.Struct, frozen=True):
    """Inputs `x`, shape (N, …), and labels `y`, shape (N, …)."""

    x: np.ndarray
    y: np.ndarray

    def first(self, count: int | None) -> Samples:
        """Return at most `count` samples, from the start."""
        return self if count is None else Samples(self.x[:count], self.y[:count])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of shapes, types and values."""
        digest = hashlib.sha256()
        for array in (self.x, self.y):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class Data:
    """Splits of a `load(split) -> (x, y)`, each read at most once."""

    def __init__(
        self,
        load: Callable[[str], Any],
        *,
        key: str,
        validate_samples: int | None = None,
        test_samples: int | None = None,
    ) -> None:
        self._load = load
        self._key = key
        self._limits = {"validate": validate_samples, "test": test_samples}
        self._read: dict[str, Samples] = {}
        self._fingerprints: dict[str, str] = {}

    def split(self, name: str) -> Samples:
        """Return samples of train, calibrate or validate. Raises UsageError for data that cannot be used."""
        if name not in SPLITS:
            raise ValueError(f"{name!r} is not for guards or tuning; expected one of {SPLITS}")
        return self._samples(name)

    def test(self) -> Samples:
        """Samples of the test split: for the report alone, when every choice is made."""
        return self._samples("test")

    def fingerprint(self, name: str) -> str:
        """SHA-256 of a split that may be read."""
        if name not in self._fingerprints:
            self._fingerprints[name] = self.split(name).fingerprint
        return self._fingerprints[name]

    def _samples(self, name: str) -> Samples:
        if name not in self._read:
            key = f"data.source = {self._key!r}, split {name!r}"
            found = checked(call_user(self._load, name, key=key), key=key).first(self._limits.get(name))
            for other, known in self._read.items():
                if known.x.shape[1:] != found.x.shape[1:]:
                    raise UsageError(
                        f"{key}: expected samples of shape {known.x.shape[1:]}, as split {other!r} has, got "
                        f"{found.x.shape[1:]}"
                    )
            self._read[name] = found
        return self._read[name]


def checked(value: Any, *, key: str) -> Samples:
    """Check what a loader returned. Raises UsageError."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise UsageError(f"{key}: expected a pair (x, y), got {type(value).__name__}")
    x, y = (_array(part, key) for part in value)
    if len(x) != len(y) or len(x) == 0:
        raise UsageError(f"{key}: expected as many labels as inputs, at least one; got {len(x)} and {len(y)}")
    if x.dtype.kind not in "fiu":
        raise UsageError(f"{key}: expected numbers as inputs, got {x.dtype}")
    if y.dtype.kind not in "fiub":
        raise UsageError(f"{key}: expected numbers as labels, got {y.dtype}")
    if x.dtype == np.float64:
        x = x.astype(np.float32)
    for what, array in (("sample", x), ("label", y)):
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            raise UsageError(f"{key}: {what} {int(np.argmin(finite))} holds NaN or infinity; clean the data first")
    return Samples(_frozen(x), _frozen(y))


def _array(part: Any, key: str) -> np.ndarray:
    try:
        array = np.asarray(part)
    except Exception as error:
        raise UsageError(f"{key}: expected arrays, got what makes none: {one_line(error)}") from error
    if array.ndim == 0:
        raise UsageError(f"{key}: expected arrays with a sample per row, got {type(part).__name__}")
    return array


def _frozen(array: np.ndarray) -> np.ndarray:
    """Return a view that a metric cannot change: every variant is scored on the same samples."""
    view = array.view()
    view.setflags(write=False)
    return view
