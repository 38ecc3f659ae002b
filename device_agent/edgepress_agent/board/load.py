"""How busy the processors were between two looks at /proc/stat (proc_stat(5))."""

from __future__ import annotations

from pathlib import Path

from edgepress_agent.board.sysfs import read_text

_IDLE, _IOWAIT = 3, 4
_GUEST = 8
"""Guest times from here on are in the user times already."""


class Load:
    """Remembers the last look."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._last = self._ticks()

    def percent(self) -> float | None:
        """Return the share of all processors' time that was busy since the last call; None where nobody can say."""
        before, self._last = self._last, self._ticks()
        passed = self._last[1] - before[1]
        if passed <= 0:
            return None
        return round(min(max(100 * (self._last[0] - before[0]) / passed, 0.0), 100.0), 1)

    def _ticks(self) -> tuple[int, int]:
        """Busy and all ticks since the start."""
        words = (read_text(self._root / "proc/stat") or "").partition("\n")[0].split()[1:]
        if len(words) <= _IOWAIT or not all(word.isdecimal() for word in words):
            return 0, 0
        ticks = [int(word) for word in words[:_GUEST]]
        every = sum(ticks)
        return every - ticks[_IDLE] - ticks[_IOWAIT], every
