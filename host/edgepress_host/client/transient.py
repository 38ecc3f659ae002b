"""A controller for the duration of one command, where none runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgepress_host import keys
from edgepress_host.client.crew import Crew
from edgepress_host.server.views import Running


@contextmanager
def transient_controller(data_dir: Path, say: Callable[[str], None], *, broker: str | None = None) -> Iterator[Running]:
    """Run `edgepress serve` until the block ends. Makes a key where there is none.

    Raises:
        Unavailable: it did not start; the line is its own last one.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    if not (data_dir / "keys" / keys.PRIVATE_NAME).exists():
        keys.init(data_dir / "keys")
        say(f"made a key pair: give {data_dir / 'keys' / keys.PUBLIC_NAME} to every device")
    serve = [sys.executable, "-m", "edgepress_host.cli", "--data-dir", str(data_dir), "serve"]
    with Crew(data_dir) as crew:
        controller = crew.start("controller", [*serve, *(["--broker", broker] if broker else [])])
        crew.first_line("controller", controller)
        say("no controller runs here: started one for this command (`edgepress serve` keeps one)")
        yield msgspec.json.decode((data_dir / "controller.json").read_bytes(), type=Running)
