"""Notices that nothing arrives although something is missing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable


class Stall:
    """Calls `on_stall` after `first_s` without a move, then at doubling intervals with jitter up to `longest_s`."""

    def __init__(self, first_s: float, longest_s: float, on_stall: Callable[[], None], seed: int | None = None) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._on_stall = on_stall
        # Jitter only spreads devices over time; it guards no secret.
        self._random = random.Random(seed)  # noqa: S311
        self._delay_s = first_s
        self._moved_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, *, waiting: bool) -> None:
        """Start or stop watching."""
        if waiting and self._timer is None:
            self.moved()
            self._arm(self._delay_s)
        elif not waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def moved(self) -> None:
        """Something arrived."""
        self._delay_s = self._first_s
        self._moved_at = asyncio.get_running_loop().time()

    def _arm(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        rest_s = self._moved_at + self._delay_s - asyncio.get_running_loop().time()
        if rest_s > 0:
            self._arm(rest_s)
            return
        self._on_stall()
        self._moved_at = asyncio.get_running_loop().time()
        self._delay_s = min(self._delay_s * 2, self._longest_s) * self._random.uniform(0.75, 1.0)
        self._arm(self._delay_s)
