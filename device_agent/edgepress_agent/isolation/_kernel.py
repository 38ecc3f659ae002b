"""Calls to the kernel that Python has no function for."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: int | object) -> int:
    """Set something of this process.

    Raises:
        OSError: the kernel refused.
    """
    return _checked(_libc.prctl(option, *_longs(arguments, 4)))


def syscall(number: int, *arguments: int | object) -> int:
    """Call a system call that the C library has no function for.

    Raises:
        OSError: the kernel refused, or does not have it.
    """
    return _checked(_libc.syscall(ctypes.c_long(number), *_longs(arguments, 4)))


def capset(header: object, data: object) -> None:
    """Set the capabilities of this process.

    Raises:
        OSError: the kernel refused.
    """
    _checked(_libc.capset(header, data))


def _longs(arguments: tuple[int | object, ...], count: int) -> list[object]:
    """Widen numbers to registers: what ctypes passes as an int leaves the upper half of one to chance."""
    wide = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    return [*wide, *[ctypes.c_ulong(0)] * (count - len(wide))]


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
