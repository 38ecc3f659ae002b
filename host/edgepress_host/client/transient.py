"""A controller for the duration of one command, where none runs."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from edgepress_protocol.errors import UsageError

from edgepress_host import keys
from edgepress_host.client.crew import Crew
from edgepress_host.server.views import Running


class Users:
    """Commands that use the controller of a data directory: one of them starts it, and ends after all the others."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def __enter__(self) -> Users:
        """Become one of them.

        Raises:
            UsageError: the data directory cannot be used.
        """
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._in_use = (self._data_dir / "in-use.lock").open("w")
        except OSError as error:
            raise UsageError(f"cannot use the data directory {self._data_dir}: {error.strerror}") from error
        fcntl.flock(self._in_use, fcntl.LOCK_SH)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self._in_use.close()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Take turns with others that found no controller."""
        with (self._data_dir / "starting.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            yield

    def outlast(self, say: Callable[[str], None]) -> None:
        """Wait until the others have left; nobody comes in from then on until this one leaves too."""
        try:
            fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command uses the controller that this one started: waiting for it to end")
            fcntl.flock(self._in_use, fcntl.LOCK_EX)


@contextmanager
def transient_controller(data_dir: Path, say: Callable[[str], None], *, broker: str | None = None) -> Iterator[Running]:
    """Run `edgepress serve` until the block ends. Makes a key where there is none.

    Raises:
        Unavailable: it did not start; the line is its own last one.
    """
    if not (data_dir / "keys" / keys.PRIVATE_NAME).exists():
        keys.init(data_dir / "keys")
        say(f"made a key pair: give {data_dir / 'keys' / keys.PUBLIC_NAME} to every device")
    serve = [sys.executable, "-m", "edgepress_host.cli", "--data-dir", str(data_dir), "serve"]
    with Crew(data_dir) as crew:
        controller = crew.start("controller", [*serve, *(["--broker", broker] if broker else [])])
        crew.first_line("controller", controller)
        say("no controller runs here: started one for this command (`edgepress serve` keeps one)")
        yield msgspec.json.decode((data_dir / "controller.json").read_bytes(), type=Running)
