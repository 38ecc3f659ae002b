"""Daemons that live as long as one command: all of them end with it, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from edgepress_protocol.errors import Unavailable

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
        leashed = [sys.executable, "-m", "edgepress_host.client.leash", str(os.getpid()), *command]
        with (self._log_dir / f"{name}.log").open("wb") as log:
            # A session of its own: Ctrl-C is for the command, which then ends its crew in order.
            process = subprocess.Popen(
                leashed, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        self._started.append((name, process))
        return process

    def first_line(self, name: str, process: subprocess.Popen[bytes]) -> str:
        """Wait for a daemon's first line on standard output, which says that it is ready.

        Raises:
            Unavailable: it ended without one; the line is the last of its log.
        """
        assert process.stdout is not None
        line = process.stdout.readline().decode(errors="replace").strip()
        if line:
            return line
        raise Unavailable(f"the {name} did not start: {self._last_words(name)}")

    def check(self) -> None:
        """Look after the daemons.

        Raises:
            Unavailable: one has ended; the line is the last of its log.
        """
        for name, process in self._started:
            if process.poll() is not None:
                raise Unavailable(f"{name} ended: {self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        log = (self._log_dir / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip()
        return log.splitlines()[-1].removeprefix("error: ") if log else f"it said nothing; see {name}.log"


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
