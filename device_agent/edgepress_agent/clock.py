"""Whether the clock can be trusted: many boards have none that survives a power cut."""

from __future__ import annotations

import ctypes

_TIME_ERROR = 5
_TIMEX_BYTES = 512  # struct timex has 208 bytes at most; the kernel reads only its first field here


def clock_synced() -> bool | None:
    """Whether the kernel's clock is disciplined by a time source (adjtimex(2)); None where nobody can say."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except AttributeError:
        return None
    return None if state < 0 else bool(state != _TIME_ERROR)
