"""The daemon in an interpreter that never saw the command line.

What click brings along would stay resident: a megabyte and a half of the 32 MiB that an idle agent may have. So `run`
checks its options, writes them into a pipe, and becomes this. The process stays the same one, so that a supervisor sees
nothing of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from edgepress_protocol.errors import EdgepressError, UsageError
from edgepress_protocol.signing import PublicKey

from edgepress_agent.settings import Settings

_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Start:
    """All that the daemon is told."""

    settings: Settings
    log_level: str
    runtimes: tuple[str, ...] = ()


def become(start: Start) -> NoReturn:
    """Go on as the daemon, in this process.

    Raises:
        UsageError: an option cannot be passed on.
    """
    try:
        words = msgspec.json.encode(start, enc_hook=_written)
    except UnicodeEncodeError as error:
        raise UsageError(f"an option has a character that is no text ({error.reason}); use names in UTF-8") from error
    told, telling = os.pipe()
    os.set_inheritable(told, True)
    if len(words) > _PAGE_BYTES:  # what a pipe holds at least
        fcntl.fcntl(telling, fcntl.F_SETPIPE_SZ, len(words))
    os.write(telling, words)
    # Modules come from where they came from here, never from a folder that the agent happens to be started in.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001 - multiprocessing's way
    flags += ["-P"] if sys.version_info >= (3, 11) else []  # or else Python 3.13 looks here before it begins
    begin = f"import sys; sys.path[:] = {sys.path!r}; from edgepress_agent.lean import main; main()"
    os.execv(  # noqa: S606 - the interpreter itself
        sys.executable, [sys.executable, *flags, "-c", begin, str(told), start.settings.device_id]
    )


def main() -> None:
    """Run the daemon that `become` was told; a mistake is one line and exit status 2."""
    with os.fdopen(int(sys.argv[1]), "rb") as told:
        start = msgspec.json.decode(told.read(), type=Start, dec_hook=_read)
    try:
        run(start)
    except EdgepressError as error:
        fail(str(error), status_of(error))


def run(start: Start) -> None:
    """Run the daemon until a signal ends it. Raises UsageError and Unavailable."""
    from edgepress_agent import daemon, runtimes
    from edgepress_agent.log import configure

    configure(start.log_level)
    runtimes.offer_only(start.runtimes)
    asyncio.run(daemon.run(start.settings))


def fail(line: str, status: int) -> NoReturn:
    """Say what went wrong in one line, and end."""
    sys.stderr.write(f"error: {line}\n")
    sys.exit(status)


def status_of(error: EdgepressError) -> int:
    """Exit status: 2 is a user's mistake, 1 what the world did."""
    return 2 if isinstance(error, UsageError) else 1


def _written(value: Any) -> str:
    return value.to_text() if isinstance(value, PublicKey) else str(value)


def _read(type_: type[Any], text: Any) -> Any:
    return PublicKey.from_text(text) if type_ is PublicKey else Path(text)
