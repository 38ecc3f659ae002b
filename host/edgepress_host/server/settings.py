"""Settings of one controller."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Settings(msgspec.Struct, frozen=True):
    """What `edgepress serve` was told.

    `bind` opens the embedded broker to a network, `broker_url` uses another one, `broker_port` is the embedded one's on
    loopback; port 0 is a free one.
    """

    data_dir: Path
    keys_dir: Path
    fleet: str = "default"
    port: int = 0
    bind: str | None = None
    broker_url: str | None = None
    broker_port: int | None = None
    bytes_per_s: float | None = None
    keepalive_s: int = 15
    max_pause_s: float = 30.0

    @property
    def running_file(self) -> Path:
        """Where the running controller says how to reach it."""
        return self.data_dir / "controller.json"

    @property
    def token_file(self) -> Path:
        """The token that whoever changes something must show."""
        return self.data_dir / "token"
