"""Raspberry Pi's throttle bits: 0 under-voltage, 1 frequency capped, 2 throttled, 3 soft temperature limit.

The same bits plus 16 say that it has happened since boot.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

from edgepress_agent.board import vcgencmd
from edgepress_agent.board.sysfs import is_simulated, read_text
from edgepress_agent.sensors import Source

_RATE_HZ = 1.0
_ANSWER = re.compile(r"(?:throttled=)?(?:0x)?([0-9a-f]{1,8})", re.ASCII | re.IGNORECASE)
"""The kernel's file is bare hex, and vcgencmd's answer `throttled=0x50000`."""

_WORDS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
_STICKY = 16


def detect(root: Path) -> Source | None:
    """Prefer the kernel's file, which costs nothing; ask the firmware where there is none."""
    path = next((root / "sys/devices/platform").glob("soc*/soc*:firmware/get_throttled"), None)
    if path is None and vcgencmd.ask(root, "get_throttled") is None:
        return None
    sensor = Sensor("pi-throttled", "throttling", "board", is_simulated(root))
    return Source(sensor, lambda: bits(read_text(path) if path else vcgencmd.ask(root, "get_throttled")), _RATE_HZ)


def bits(answer: str | None) -> int:
    """Read the bits out of either answer.

    >>> hex(bits("throttled=0x50000"))
    '0x50000'

    Raises:
        Unavailable: it is neither.
    """
    found = _ANSWER.fullmatch(answer or "")
    if found is None:
        raise Unavailable(f"get_throttled: expected throttled=0x… or hexadecimal, found {(answer or '')[:40]!r}")
    return int(found[1], 16)


def words(value: int) -> str:
    """Say in words what the bits mean.

    >>> words(0x50005)
    'under-voltage and throttled now; under-voltage and throttled since boot'
    """
    now = [word for bit, word in enumerate(_WORDS) if value >> bit & 1]
    since = [word for bit, word in enumerate(_WORDS) if value >> (bit + _STICKY) & 1]
    told = [f"{' and '.join(each)} {when}" for each, when in ((now, "now"), (since, "since boot")) if each]
    return "; ".join(told) or "nothing since boot"
