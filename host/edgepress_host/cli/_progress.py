"""How long work of many steps is shown, and how Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from edgepress_host.cli._shared import safe, say

if TYPE_CHECKING:
    from edgepress_host.compress import Progress

_INTERRUPTED = 130


def stopped() -> click.exceptions.Exit:
    """Say what a stop means, and return the exit of it."""
    say("stopped; finished steps are kept, the same command goes on from here")
    return click.exceptions.Exit(_INTERRUPTED)


@contextlib.contextmanager
def stopping(progress: Callable[[Progress], None]) -> Iterator[Callable[[Progress], None]]:
    """Make Ctrl-C certain: a library that swallows the interrupt delays it to the next step, no further."""
    asked = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    def checked(now: Progress) -> None:
        if asked:
            raise KeyboardInterrupt
        progress(now)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield checked
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def drawn(*, quietly: bool) -> Iterator[Callable[[Progress], None]]:
    """Draw progress on a descriptor of our own, since libraries are silenced on 1 and 2; lines where no terminal is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with os.fdopen(os.dup(2), "w", encoding="utf-8") as own:
        if not own.isatty():
            yield _lines(own.write, own.flush, quietly=quietly)
            return
        columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Bar(*columns, console=Console(file=own), transient=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda now: bar.update(task, completed=now.done, total=now.total, description=safe(now.doing))


def _lines(write: Callable[[str], object], flush: Callable[[], None], *, quietly: bool) -> Callable[[Progress], None]:
    last = ""

    def line(now: Progress) -> None:
        nonlocal last
        step = now.doing.partition(": ")[0]
        if step and step != last and not quietly:
            write(f"[{now.done + 1}/{now.total}] {step}\n")
            flush()
        last = step

    return line
