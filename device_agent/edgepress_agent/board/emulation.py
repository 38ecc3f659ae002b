"""Whether this program runs on another kind of processor than it was made for, as it does under qemu-user.

What an emulated processor takes has nothing to do with what a board takes, so such a latency must be told apart.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_HEAD_BYTES = 20
_MACHINE_AT = 18
"""Where an ELF file says for which processor it is (e_machine of the System V ABI), in its own byte order."""

_FAMILIES = (
    (("aarch64", "arm64", "armv8l", "armv7l", "armv6l"), (183, 40)),
    (("x86_64", "amd64", "i686", "i586", "i386"), (62, 3)),
    (("riscv64", "riscv32"), (243,)),
    (("ppc64le", "ppc64"), (21,)),
    (("s390x",), (22,)),
)
"""Names that uname gives, and the ELF machines that run there natively, 32 bits beside 64."""


@functools.lru_cache(maxsize=1)
def emulated() -> bool:
    """Whether the kernel runs another program than this one believes itself to be.

    An emulator answers uname and /proc/self/exe for the program that it runs; what the kernel says of the thread is
    the emulator itself. A whole emulated machine cannot be told from a real one in this way.
    """
    try:
        with Path("/proc/thread-self/exe").open("rb") as program:
            head = program.read(_HEAD_BYTES)
    except OSError:
        return False
    return is_foreign(head, platform.machine())


def is_foreign(head: bytes, machine: str) -> bool:
    """Whether an ELF file that begins so cannot run natively on a machine of this name; False where neither is known.

    >>> is_foreign(bytes.fromhex("7f454c46020101" + "00" * 9 + "03003e00"), "aarch64")
    True
    """
    if len(head) < _HEAD_BYTES or not head.startswith(b"\x7fELF"):
        return False
    made_for = int.from_bytes(head[_MACHINE_AT:_HEAD_BYTES], "big" if head[5] == 2 else "little")
    known = {each for _, machines in _FAMILIES for each in machines}
    native = next((machines for names, machines in _FAMILIES if machine.lower() in names), None)
    return native is not None and made_for in known and made_for not in native
