"""Reading small files of /proc and /sys: what is absent is None, what cannot be read or makes no sense is an error."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

from edgepress_protocol.errors import Unavailable

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO)
_MAX_BYTES = 1 << 20
"""The longest file of interest is /proc/cpuinfo, of some kB a core."""

_INTEGER = re.compile(r"-?[0-9]{1,16}", re.ASCII)
_LARGEST = 2**53
"""Every such number is exact as a float, and a thousand times it still fits into 64 bits."""

_MAX_NAME = 64
"""Shown in tables, and a field of messages that a host refuses where it is too long."""


def read_text(path: Path) -> str | None:
    """Return a file's text without white space and NULs around it; None where there is no such file.

    Raises:
        Unavailable: it is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise Unavailable(f"{path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise Unavailable(f"{path}: longer than {_MAX_BYTES} bytes, which nothing that is read here should be")
    return data.decode(errors="replace").strip("\0 \t\r\n")


def read_name(path: Path) -> str | None:
    """Return a file's text as one printable line of at most 64 characters; None where there is none.

    Raises:
        Unavailable: it is there and cannot be read.
    """
    return one_line(read_text(path) or "") or None


def one_line(text: str, most: int = _MAX_NAME) -> str:
    r"""Make what a kernel or a device tree says fit to be shown.

    >>> one_line("Raspberry\x00Pi\n")
    'Raspberry Pi'
    """
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:most].strip()


def read_int(path: Path) -> int | None:
    """Return a file's decimal number; None where there is no such file.

    Raises:
        Unavailable: it cannot be read, or holds no number of a size that a board can mean.
    """
    text = read_text(path)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text) or abs(value := int(text)) > _LARGEST:
        raise Unavailable(f"{path}: expected a decimal number, found {text[:40]!r}")
    return value


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
