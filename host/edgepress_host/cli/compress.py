"""`edgepress compress`: a recipe in, measured variants out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from edgepress_protocol.errors import EdgepressError

from edgepress_host.cli._progress import drawn, stopped, stopping
from edgepress_host.cli._settings import parsed
from edgepress_host.cli._shared import console, json_option, print_json, safe, table

if TYPE_CHECKING:
    from edgepress_host.variants import VariantResult, Variants


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for the variants; a second run with the same folder resumes.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="In place of what the recipe says, such as model.source=mynet:build or guard.max_drop=0.1; may be repeated.",
)
@json_option
def command(recipe: Path, out: Path, settings: tuple[str, ...], *, as_json: bool) -> None:
    """Compress a model into variants, as a RECIPE says, and measure each one.

    Every variant is run in its real runtime on the validate split; the test split is read once, for the report.
    Ctrl-C stops; the same command goes on from where it was.
    """
    # The user's own modules are named as he would import them here.
    sys.path.insert(0, str(Path.cwd()))
    from edgepress_host.compress import compress
    from edgepress_host.recipe import load

    loaded = load(recipe, parsed(settings))
    try:
        with drawn(quietly=as_json) as draw, stopping(draw) as progress:
            made = compress(loaded, out, progress=progress)
    except KeyboardInterrupt:
        raise stopped() from None
    if as_json:
        print_json(made)
    else:
        _print(made, out)
    if not made.worked:
        first = next(variant for variant in made.variants if variant.name != made.baseline)
        raise EdgepressError(f"no variant worked; the first: {first.name}.{first.format}, {first.reason}")


def _print(made: Variants, out: Path) -> None:
    names = ("variant", "accuracy", "test", "params", "kB", "wire kB", "loaded kB", "verdict")
    shown = table(names, right=names[1:7])
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
        number(variant.loaded_bytes, ",.0f", 1000),
        variant.verdict,
    )
