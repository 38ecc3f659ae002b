"""Agents that share a machine take turns through a lock on a file: two that measure at once measure each other."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def turn(lock: Path, on_wait: Callable[[], None]) -> AsyncIterator[None]:
    """Hold the lock for the time of the block; `on_wait` is called once where another holds it.

    Raises:
        OSError: the lock file cannot be opened.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        await _wait_for(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


async def _wait_for(descriptor: int) -> None:
    """Wait in a thread of its own: flock cannot be given up, and a thread of the pool would hold up the agent's end."""
    loop = asyncio.get_running_loop()
    held: asyncio.Future[None] = loop.create_future()

    def hand_over() -> None:
        if held.cancelled():
            os.close(descriptor)
        else:
            held.set_result(None)

    def wait() -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            loop.call_soon_threadsafe(hand_over)
        except RuntimeError:  # the loop has ended while this waited
            os.close(descriptor)

    threading.Thread(target=wait, name="measure lock", daemon=True).start()
    await held
