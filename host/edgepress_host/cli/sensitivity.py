"""`edgepress sensitivity`: accuracy against ratio, bits or energy, one layer at a time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from edgepress_protocol.errors import UsageError

from edgepress_host.cli._progress import drawn, stopped, stopping
from edgepress_host.cli._settings import parsed
from edgepress_host.cli._shared import console, json_option, print_json, safe, table

if TYPE_CHECKING:
    from edgepress_host.sensitivity import Cell, Sensitivity, Sweep

_BAD, _POOR = 0.05, 0.01
"""Lost accuracy that is shown in red and in yellow."""


@click.command()
@click.argument("model")
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for the results; one that `edgepress compress` used shares its cache.",
)
@click.option("--technique", default="prune", show_default=True, help="What is done to each layer.")
@click.option("--option", metavar="NAME", help="The option that is varied; default: ratio, bits or energy.")
@click.option("--levels", metavar="A,B,…", help="Its values, from mild to hard.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Another option of the technique, as TOML.")
@click.option("--layers", multiple=True, metavar="PATTERN", help="Only layers whose names match; may be repeated.")
@click.option("--format", "format_", default="onnx", show_default=True, help="The runtime that measures.")
@json_option
def command(  # noqa: PLR0913, PLR0917 - one argument for each option
    model: str,
    recipe: Path,
    out: Path,
    technique: str,
    option: str | None,
    levels: str | None,
    settings: tuple[str, ...],
    layers: tuple[str, ...],
    format_: str,
    *,
    as_json: bool,
) -> None:
    """Measure how much each layer of MODEL can take, on the data and by the metric of RECIPE.

    MODEL is module:attr, or - for the recipe's own. Results: a table, sensitivity.json, and a plot in
    sensitivity.html. What was measured once comes from the cache.
    """
    # The user's own modules are named as he would import them here.
    sys.path.insert(0, str(Path.cwd()))
    import msgspec

    from edgepress_host.durable import write
    from edgepress_host.recipe import ModelTable, load
    from edgepress_host.reporting.heat import page
    from edgepress_host.sensitivity import analyse

    loaded = load(recipe)
    if model != "-":
        loaded = msgspec.structs.replace(loaded, model=ModelTable(source=model))
    sweep = _sweep(technique, option, levels, settings)
    try:
        with drawn(quietly=as_json) as draw, stopping(draw) as progress:
            found = analyse(loaded, out, sweep, layers=layers or ("*",), format_=format_, progress=progress)
    except KeyboardInterrupt:
        raise stopped() from None
    write(out / "sensitivity.html", page(found).encode())
    if as_json:
        print_json(found)
    else:
        _print(found, out)


def _sweep(name: str, option: str | None, levels: str | None, settings: tuple[str, ...]) -> Sweep:
    from edgepress_host.sensitivity import SWEEPS, Sweep

    usual = SWEEPS.get(name)
    if usual is None and (option is None or levels is None):
        raise UsageError(f"technique {name!r}: say --option and --levels; without them: {', '.join(SWEEPS)}")
    base = usual if usual is not None and option in (None, usual.option) else None
    if base is None and levels is None:
        raise UsageError(f"option {option!r}: say --levels A,B,… too")
    given = parsed(settings)
    return Sweep(
        technique=name,
        option=option or (usual.option if usual else ""),
        levels=_numbers(levels) if levels is not None else base.levels if base else (),
        settings={**(usual.settings if usual else {}), **given},
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--levels: expected numbers with commas between, got {text!r}") from error


def _print(found: Sensitivity, out: Path) -> None:
    from edgepress_host import units

    names = [f"{found.sweep.option} {level:g}" for level in found.sweep.levels]
    shown = table(["layer", *names], right=names, title=f"{found.metric}, original {units.score(found.accuracy)}")
    for layer in found.layers:
        shown.add_row(safe(layer), *(_shown(cell) for cell in found.row(layer)))
    terminal = console()
    terminal.print(shown)
    for cell in found.cells:
        if cell.reason:
            terminal.print(f"{safe(cell.layer)} at {cell.level:g}: {safe(cell.reason)}")
    terminal.print(f"sensitivity.json and sensitivity.html in {safe(out)}")


def _shown(cell: Cell) -> str:
    from edgepress_host import units

    if cell.accuracy is None or cell.drop is None:
        return units.BLANK
    text = units.score(cell.accuracy)
    colour = "red" if cell.drop > _BAD else "yellow" if cell.drop > _POOR else ""
    return f"[{colour}]{text}[/]" if colour else text
