"""A controller for the duration of one command, where none runs."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from edgepress_protocol.errors import Unavailable

from edgepress_host import keys
from edgepress_host.server.views import Running

STOP_S = 10.0
_PR_SET_PDEATHSIG = 1


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
    log = data_dir / "controller.log"
    with log.open("wb") as written:
        # A session of its own: Ctrl-C is for the command, which then stops the controller in order.
        child = subprocess.Popen(
            [*serve, *(["--broker", broker] if broker else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=written,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread of ours runs yet
        )
    try:
        assert child.stdout is not None
        # The one line on its standard output is printed when it is ready; end of file means that it never will be.
        if not child.stdout.readline():
            raise Unavailable(f"the controller did not start: {_last_line(log)}")
        say("no controller runs here: started one for this command (`edgepress serve` keeps one)")
        yield msgspec.json.decode((data_dir / "controller.json").read_bytes(), type=Running)
    finally:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _end_with_parent() -> None:
    """Ask the kernel to stop this process in order when the command is killed (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"it said nothing; see {log}"
