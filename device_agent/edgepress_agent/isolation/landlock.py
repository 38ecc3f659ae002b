"""Landlock: a process shows the kernel which files it needs, and has no others from then on.

Source: the kernel's Documentation/userspace-api/landlock.rst. Each version of the interface adds something; a kernel
is asked for as much as it has.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgepress_agent.isolation import _kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_ASK_VERSION = 1
_RULE_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_EXECUTE, _TRUNCATE, _IOCTL_DEV = 1 << 0, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many rights over files each version knows; later ones know 16."""

READ = _READ_FILE | _READ_DIR
LIST = _READ_DIR
DEVICE = _READ_FILE | _WRITE_FILE | _READ_DIR | _IOCTL_DEV
OWN = READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG

_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # no abstract Unix sockets of others, no signals to them


@dataclass(frozen=True)
class Allowed:
    """A file or a folder with all beneath it, and the rights over it."""

    path: Path
    rights: int


def version() -> int:
    """Return the kernel's version of Landlock.

    Raises:
        OSError: it has none, or it is switched off.
    """
    return _kernel.syscall(_CREATE_RULESET, 0, 0, _ASK_VERSION)


def restrict(paths: Iterable[Allowed]) -> str:
    """Leave this thread, and what it starts, these files and no TCP; returns what was put on.

    Paths that are not there are left out.

    Raises:
        OSError: the kernel has no Landlock.
    """
    has = version()
    of_files = (1 << _FILE_BITS.get(has, 16)) - 1
    asked = (ctypes.c_uint64 * 3)(of_files, _TCP if has >= 4 else 0, _SCOPES if has >= 6 else 0)
    ruleset = _kernel.syscall(_CREATE_RULESET, ctypes.byref(asked), _size_bytes(has), 0)
    try:
        for each in paths:
            _allow(ruleset, each, of_files)
        _kernel.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return str(has)


def _size_bytes(has: int) -> int:
    """Size of the record of what is asked for: the kernel refuses one that is larger than its own."""
    return 24 if has >= 6 else 16 if has >= 4 else 8


def _allow(ruleset: int, allowed: Allowed, known: int) -> None:
    try:
        descriptor = os.open(allowed.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not there, or not for us: nothing is lost by not allowing it
    try:
        rights = allowed.rights & known
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = ctypes.create_string_buffer(
            rights.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder), 12
        )
        _kernel.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
