"""The Raspberry Pi's firmware, asked through the kernel's mailbox: what `vcgencmd` does, without a process per reading.

The kernel takes a list of property tags (github.com/raspberrypi/firmware/wiki/Mailbox-property-interface); the tag
for a general command carries an error code and a text, the command on its way there and the answer on its way back.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from edgepress_protocol.errors import Unavailable

_DEVICES = ("dev/vcio_gencmd", "dev/vcio")
"""The first takes general commands alone, and exists on newer systems."""

_PROPERTY = 0xC0086400  # _IOWR(100, 0, char *) of a 64-bit system
_GENERAL_COMMAND = 0x00030080
_ANSWERED = 0x80000000
_TEXT_BYTES = 1024
_HEAD = struct.Struct("=6I")
"""Size of all, code (0 asks), tag, size of the text, length of the request, error code."""

_END = bytes(4)


def devices(root: Path) -> list[Path]:
    """Return the mailboxes that are there, the narrowest first."""
    return [path for name in _DEVICES if (path := root / name).exists()]


def ask(devices: Sequence[Path], command: str) -> str:
    """Return what the firmware answers, which may be that it does not know the command.

    The first mailbox that this process may use is asked; a service may be kept from one of them.

    Raises:
        Unavailable: none may be opened, or the firmware did not answer.
    """
    refused = []
    for device in devices:
        buffer = bytearray(request(command))
        try:
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, _PROPERTY, buffer)
            finally:
                os.close(descriptor)
        except OSError as error:
            refused.append(f"{device}: {error.strerror}")
            continue
        return answer(bytes(buffer))
    raise Unavailable(f"{', '.join(refused)}; is the user in group video?")


def request(command: str) -> bytes:
    """Return the message that asks for `command`."""
    text = command.encode()
    if len(text) >= _TEXT_BYTES:
        raise Unavailable(f"a firmware command of {len(text)} bytes: at most {_TEXT_BYTES - 1} are taken")
    size = _HEAD.size + _TEXT_BYTES + len(_END)
    return _HEAD.pack(size, 0, _GENERAL_COMMAND, _TEXT_BYTES, 0, 0) + text.ljust(_TEXT_BYTES, b"\0") + _END


def answer(message: bytes) -> str:
    """Take the text out of the firmware's answer.

    Raises:
        Unavailable: it is no answer.
    """
    if len(message) < _HEAD.size:
        raise Unavailable(f"the firmware's answer has {len(message)} bytes, too few")
    _, code, tag, *_ = _HEAD.unpack_from(message)
    if code != _ANSWERED or tag != _GENERAL_COMMAND:
        raise Unavailable(f"the firmware did not answer: code {code:#x}, tag {tag:#x}")
    text = message[_HEAD.size : _HEAD.size + _TEXT_BYTES].partition(b"\0")[0]
    return text.decode(errors="replace").strip()
