"""`edgepress compress`: a recipe in, measured variants out."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from edgepress_protocol.errors import EdgepressError

from edgepress_host.cli._shared import console, json_option, print_json, safe, say, table

if TYPE_CHECKING:
    from edgepress_host.compress import Progress
    from edgepress_host.variants import VariantResult, Variants

_INTERRUPTED = 130


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for the variants; a second run with the same folder resumes.",
)
@json_option
def command(recipe: Path, out: Path, *, as_json: bool) -> None:
    """Compress a model into variants, as a RECIPE says, and measure each one.

    Every variant is run in its real runtime on the validate split; the test split is read once, for the report.
    Ctrl-C stops; the same command goes on from where it was.
    """
    # The user's own modules are named as he would import them here.
    sys.path.insert(0, str(Path.cwd()))
    from edgepress_host.compress import compress
    from edgepress_host.recipe import load

    loaded = load(recipe)
    try:
        with _drawn(quietly=as_json) as draw, _stopping(draw) as progress:
            made = compress(loaded, out, progress=progress)
    except KeyboardInterrupt:
        say("stopped; finished steps are kept, the same command goes on from here")
        raise click.exceptions.Exit(_INTERRUPTED) from None
    if as_json:
        print_json(made)
    else:
        _print(made, out)
    if not made.worked:
        first = next(variant for variant in made.variants if variant.name != made.baseline)
        raise EdgepressError(f"no variant worked; the first: {first.name}.{first.format}, {first.reason}")


@contextlib.contextmanager
def _stopping(progress: Callable[[Progress], None]) -> Iterator[Callable[[Progress], None]]:
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
def _drawn(*, quietly: bool) -> Iterator[Callable[[Progress], None]]:
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


def _print(made: Variants, out: Path) -> None:
    names = ("variant", "accuracy", "test", "params", "kB", "wire kB", "verdict")
    shown = table(names, right=names[1:6])
    shown.columns[0].no_wrap = True
    for variant in made.variants:
        shown.add_row(*_row(variant))
    terminal = console()
    terminal.print(shown)
    for variant in made.variants:
        if variant.verdict != "ok":
            terminal.print(f"{safe(variant.name)}.{variant.format}: {variant.verdict}: {safe(variant.reason)}")
    terminal.print(f"{sum(v.file is not None for v in made.variants)} files and variants.json in {safe(out)}")


def _row(variant: VariantResult) -> tuple[str, ...]:
    def number(value: float | None, form: str, scale: float = 1) -> str:
        return "" if value is None else format(value / scale, form)

    return (
        f"{safe(variant.name)}.{variant.format}",
        number(variant.accuracy, ".4f"),
        number(variant.test_accuracy, ".4f"),
        number(variant.params, ",.0f"),
        number(variant.file_bytes, ",.1f", 1000),
        number(variant.wire_bytes, ",.1f", 1000),
        variant.verdict,
    )
