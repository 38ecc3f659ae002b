"""Processes of a demo: all of them end with it, whatever happens."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from edgepress_protocol.errors import Unavailable

_PR_SET_PDEATHSIG = 1
STOP_S = 10.0


class Crew:
    """Starts processes in sessions of their own, and ends them, their children included, in reverse order."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Crew:
        """Nothing runs yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything that runs."""
        for _, process in reversed(self._started):
            process.terminate()
        for _, process in reversed(self._started):
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a daemon; what it writes to standard error goes to `<name>.log`."""
        with (self._log_dir / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads run yet in the demo's process
            )
        self._started.append((name, process))
        return process

    def first_line(self, name: str, process: subprocess.Popen[bytes]) -> str:
        """Wait for a daemon's first line on standard output.

        Raises:
            Unavailable: it ended without one; the line is the last of its log.
        """
        assert process.stdout is not None
        line = process.stdout.readline().decode(errors="replace").strip()
        if line:
            return line
        log = (self._log_dir / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip()
        raise Unavailable(f"{name} did not start: {log.splitlines()[-1] if log else 'it said nothing'}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that the crew is ended in order."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
