"""Whether the processor is a real one: what runs under qemu must never be taken for a board's latency."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import pytest
from edgepress_agent.board.emulation import emulated, is_foreign
from hypothesis import given
from hypothesis import strategies as st

X86_64, X86, ARM64, ARM32, RISCV = 62, 3, 183, 40, 243


def elf(machine: int, *, order: str = "<") -> bytes:
    ident = b"\x7fELF\x02" + (b"\x01" if order == "<" else b"\x02") + bytes(10)
    return ident + struct.pack(f"{order}HH", 3, machine)


@pytest.mark.parametrize(
    ("program", "machine", "foreign"),
    [
        (X86_64, "aarch64", True),  # qemu-aarch64 on a PC
        (X86_64, "armv7l", True),
        (ARM64, "x86_64", True),  # Rosetta, or qemu-x86_64 on a board
        (X86_64, "riscv64", True),
        (ARM64, "aarch64", False),
        (ARM32, "aarch64", False),  # a 32-bit system on a 64-bit kernel
        (ARM32, "armv7l", False),
        (ARM64, "armv8l", False),  # a 64-bit kernel that answers a 32-bit program
        (X86, "x86_64", False),
        (RISCV, "riscv64", False),
        (X86_64, "loongarch64", False),  # nobody described it: nothing is claimed
        (9999, "aarch64", False),
    ],
)
def test_the_program_that_the_kernel_runs_and_the_machine_must_fit(program: int, machine: str, foreign: bool) -> None:
    assert is_foreign(elf(program), machine) is foreign


def test_the_byte_order_is_the_files_own() -> None:
    assert is_foreign(elf(22, order=">"), "aarch64")
    assert not is_foreign(elf(22, order=">"), "s390x")


@given(st.binary(max_size=40), st.text(max_size=10))
def test_whatever_is_no_elf_file_claims_nothing(data: bytes, machine: str) -> None:
    assert is_foreign(data, machine) is False or data.startswith(b"\x7fELF")


def test_the_machine_that_runs_this_is_what_it_says() -> None:
    """Its interpreter is made for it; where that is not so this suite runs under an emulator, and says so."""
    program = Path("/proc/thread-self/exe").read_bytes()[:20]
    assert program.startswith(b"\x7fELF")
    assert emulated() is is_foreign(program, platform.machine())
