"""What systemd is told: ready, stopping, how it goes, and that the event loop still turns (sd_notify(3))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from edgepress_agent.log import logger


@dataclass(frozen=True)
class Supervisor:
    """Datagrams to the socket of a service of `Type=notify`; without a supervisor nothing is said."""

    address: str = ""
    watchdog_s: float | None = None

    def ready(self) -> None:
        """Say that the start is over."""
        self._say("READY=1")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._say("STOPPING=1")

    def status(self, line: str) -> None:
        """Say in one line how it goes; `systemctl status` shows it."""
        self._say(f"STATUS={line}")

    async def watch(self) -> None:
        """Say twice within each watchdog interval that the loop turns, for ever; a loop that hangs says nothing."""
        if self.watchdog_s is None:
            return
        while True:
            self._say("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _say(self, message: str) -> None:
        if not self.address:
            return
        # A name that begins with @ is one of the abstract name space.
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A supervisor that does not read must not hold the agent up.
            sender.setblocking(False)
            try:
                sender.sendto(message.encode(), address)
            except OSError as error:
                logger.debug("NOTIFY_SOCKET %s: %s", self.address, error.strerror)


def supervisor(environment: MutableMapping[str, str]) -> Supervisor:
    """Take the supervisor's address out of the environment: what the agent starts must not speak for it.

    >>> supervisor({"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "30000000"}).watchdog_s
    30.0
    """
    address = environment.pop("NOTIFY_SOCKET", "")
    microseconds = environment.pop("WATCHDOG_USEC", "")
    meant_for = environment.pop("WATCHDOG_PID", "")
    watchdog_s: float | None = None
    if meant_for in {"", str(os.getpid())}:
        with contextlib.suppress(ValueError):
            watchdog_s = int(microseconds) / 1e6
    return Supervisor(address, watchdog_s or None)
