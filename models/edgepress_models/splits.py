"""The four splits that every data set of the zoo has, cut so that they never overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "calibrate", "validate", "test")

Indices = npt.NDArray[np.int64]


def check(split: str) -> None:
    """Refuse a name that is none of the four.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"expected one of the splits {', '.join(SPLITS)}, got {split!r}")


def cut(labels: npt.NDArray[Any], calibrate_each: int, validate_each: int, seed: int = 0) -> dict[str, Indices]:
    """Return which samples belong to `train`, `calibrate` and `validate`, in ascending order.

    `calibrate` and `validate` take so many of each class, drawn by the seed; `train` takes the rest.

    >>> [part.tolist() for part in cut(np.array([0, 0, 0, 1, 1, 1]), 1, 1).values()]
    [[1, 3], [2, 5], [0, 4]]
    """
    generator = np.random.default_rng(seed)
    parts: dict[str, list[Indices]] = {"train": [], "calibrate": [], "validate": []}
    for label in np.unique(labels):
        shuffled = generator.permutation(np.flatnonzero(labels == label))
        calibrate, validate, train = np.split(shuffled, [calibrate_each, calibrate_each + validate_each])
        parts["train"].append(train)
        parts["calibrate"].append(calibrate)
        parts["validate"].append(validate)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def in_one_order(rows: npt.NDArray[np.uint8], seed: int = 0) -> Indices:
    """Return an order of rows of bytes, (N, bytes), that looks random and does not depend on how they came.

    Copies of one data set hold the same samples in different orders. The order counts: who trains on the first samples
    wants all classes among them, and the same ones everywhere.

    >>> rows = np.array([[7], [5], [6]], np.uint8)
    >>> rows[in_one_order(rows)].ravel().tolist() == rows[::-1][in_one_order(rows[::-1])].ravel().tolist()
    True
    """
    by_bytes = np.argsort(whole(rows), kind="stable")
    return by_bytes[np.random.default_rng(seed).permutation(len(rows))]


def whole(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.void]:
    """Return rows of bytes, (N, bytes), as an array (N,) whose values are compared byte by byte."""
    return np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).ravel()


def shared(*arrays: npt.NDArray[Any]) -> None:
    """Make arrays read-only, because a loader hands the same ones to every caller."""
    for array in arrays:
        array.setflags(write=False)
