"""Raspberry Pi's throttle bits: 0 under-voltage, 1 frequency capped, 2 throttled, 3 soft temperature limit.

The same bits plus 16 say that it has happened since boot.
"""

from __future__ import annotations

from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor

from edgepress_agent.board import vcgencmd
from edgepress_agent.board.sysfs import is_simulated, read_text
from edgepress_agent.sensors import Source

_RATE_HZ = 1.0


def detect(root: Path) -> Source | None:
    """Prefer the kernel's file, which costs no process; ask vcgencmd where there is none."""
    path = next((root / "sys/devices/platform").glob("soc*/soc*:firmware/get_throttled"), None)
    if path is None and vcgencmd.ask(root, "get_throttled") is None:
        return None
    sensor = Sensor("pi-throttled", "throttling", "board", is_simulated(root))
    return Source(sensor, lambda: _bits(read_text(path) if path else vcgencmd.ask(root, "get_throttled")), _RATE_HZ)


def _bits(answer: str | None) -> int:
    try:
        return int((answer or "").rpartition("=")[2], 16)
    except ValueError as error:
        raise Unavailable(f"get_throttled answered {answer!r}") from error
