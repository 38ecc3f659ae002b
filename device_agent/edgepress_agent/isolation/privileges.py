"""No privilege is gained any more, and those of root are given up."""

from __future__ import annotations

import ctypes
from pathlib import Path

from edgepress_agent.isolation import _kernel

_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_DAC_READ_SEARCH = 1 << 2
"""Read what only root may: the model of a user whose folders are closed. What may be read is Landlock's to say."""


def never_gain() -> str:
    """No program that this process starts gains privileges by its set-user-id bit or its capabilities."""
    _kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return ""


def drop() -> str:
    """Give up all capabilities but the one to read; an agent that is not root has none."""
    keep = _permitted() & _DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable; the lower 32 capabilities, then the upper ones.
    data = (ctypes.c_uint32 * 6)(keep, keep, 0, 0, 0, 0)
    _kernel.capset(header, data)
    return ""


def _permitted() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next((line.split()[1] for line in lines if line.startswith("CapPrm:")), "0"), 16)
