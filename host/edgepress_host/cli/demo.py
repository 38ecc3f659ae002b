"""`edgepress demo`: the whole line on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from edgepress_host.cli._shared import console


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for all that it leaves.",
)
@click.option("--recipe", type=click.Path(dir_okay=False, path_type=Path), help="Another recipe than the shipped one.")
@click.option(
    "--tflite-python",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PYTHON",
    help="Interpreter of an environment with edgepress[tflite-runtime]; without it, two agents play.",
)
def command(out: Path, recipe: Path | None, tflite_python: Path | None) -> None:
    """Compress, push, profile, select and deploy, with an embedded broker and three agents on this machine.

    Leaves variants.json, measurements.json, choice.json and report.html in --out.
    """
    from edgepress_host.demo.play import play

    play(out, tflite_python=tflite_python, recipe=recipe, console=console())
