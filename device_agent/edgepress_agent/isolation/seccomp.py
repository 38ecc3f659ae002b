"""A seccomp filter: system calls that no model has any use for are refused from now on, with an error, not a signal.

Source: the kernel's Documentation/userspace-api/seccomp_filter.rst, and seccomp(2). Threads start as ever; processes,
programs, sockets, and whatever reaches into other processes or changes the machine, do not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

from edgepress_agent.isolation import _kernel
from edgepress_agent.isolation.syscalls import ABSENT, ARCHITECTURES, FOREIGN_FROM, OWN_PROCESS_ONLY, REFUSED

_SET_FILTER = 1
_SPEC_ALLOW = 1 << 2
"""Kernels before 5.16 slow every speculative store of a filtered process down unless they are asked not to."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENT_AT = 0, 4, 16
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_CLONE_THREAD = 0x00010000

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: a `sock_filter`."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse(*, unix_sockets: bool) -> str:
    """Put the filter on this thread and what it starts. `unix_sockets` may still be opened: CUDA needs one.

    Raises:
        OSError: the kernel has no such filters, or nobody wrote down this processor's system calls.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    program = build(machine, os.getpid(), unix_sockets=unix_sockets)
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    handed = ctypes.byref(_Program(len(program), code))
    call = ARCHITECTURES[machine].numbers["seccomp"]
    try:
        _kernel.syscall(call, _SET_FILTER, _SPEC_ALLOW, handed)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _kernel.syscall(call, _SET_FILTER, 0, handed)  # before 4.17 there was nothing to ask for
    return ""


def build(machine: str, own_pid: int, *, unix_sockets: bool) -> list[Instruction]:
    """Write the filter for a machine, as instructions of classic BPF."""
    architecture = ARCHITECTURES[machine]
    numbers = architecture.numbers
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture.audit),
        # Another architecture's calls have other numbers: none of them passes.
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, FOREIGN_FROM),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
    ]
    for name in REFUSED:
        if name in numbers:
            program += _when(numbers[name], [(_RETURN, 0, 0, _ERROR | errno.EPERM)])
    for name in ABSENT:
        program += _when(numbers[name], [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)])
    for name in OWN_PROCESS_ONLY:
        program += _when(numbers[name], _unless((_EQUAL, own_pid)))
    program += _when(numbers["prlimit64"], _unless((_EQUAL, own_pid), (_EQUAL, 0)))
    program += _when(numbers["clone"], _unless((_ANY_BIT, _CLONE_THREAD)))
    program += _when(numbers["socket"], _unless((_EQUAL, int(socket.AF_UNIX))) if unix_sockets else _unless())
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _when(number: int, then: list[Instruction]) -> list[Instruction]:
    return [(_EQUAL, 0, len(then), number), *then]


def _unless(*tests: tuple[int, int]) -> list[Instruction]:
    """Refuse, unless the lower half of the first argument passes one of the tests."""
    low_half = _ARGUMENT_AT if sys.byteorder == "little" else _ARGUMENT_AT + 4
    load: list[Instruction] = [(_LOAD, 0, 0, low_half)]
    # A test that passes jumps over those after it and the refusal.
    checks = [(code, len(tests) - i, 0, value) for i, (code, value) in enumerate(tests)]
    return [*load, *checks, (_RETURN, 0, 0, _ERROR | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
