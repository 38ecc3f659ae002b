"""Reading small files of /proc and /sys: what is absent is None, what cannot be read is an error."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from edgepress_protocol.errors import Unavailable

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO)


def read_text(path: Path) -> str | None:
    """Return a file's text without white space and NULs around it; None where there is no such file.

    Raises:
        Unavailable: it is there and cannot be read.
    """
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \t\r\n")
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise Unavailable(f"{path}: {error.strerror}") from error


def read_int(path: Path) -> int | None:
    """Return a file's decimal number; None where there is no such file.

    Raises:
        Unavailable: it cannot be read, or holds no number.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise Unavailable(f"{path}: not a number: {text[:40]!r}") from error


def number(path: Path) -> int:
    """Return a file's decimal number.

    Raises:
        Unavailable: it is gone, cannot be read, or holds no number.
    """
    value = read_int(path)
    if value is None:
        raise Unavailable(f"{path}: gone")
    return value


def thousandths(path: Path) -> Callable[[], float]:
    """Return a reader of a number kept in thousandths (µW, µJ, m°C) of what is wanted."""
    return lambda: number(path) / 1000


def readable(path: Path) -> bool:
    """Whether a number can be read there at present."""
    try:
        return read_int(path) is not None
    except Unavailable:
        return False


def hwmon(root: Path, *names: str) -> list[Path]:
    """Return the hwmon folders of these chips; their numbers move between boots."""
    folders = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    return [folder for folder in folders if read_text(folder / "name") in names]


def is_simulated(root: Path) -> bool:
    """Any root but the machine's own is a recorded tree."""
    return root != Path("/")
