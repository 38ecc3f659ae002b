"""The commands `where` and `fetch`, which the module of each data set has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from edgepress_models import sources


def commands(where: Callable[[], Iterable[str]], fetch: Callable[[], Path]) -> click.Group:
    """Return the two commands: `where` prints the lines that it is given, `fetch` the folder or file that it filled.

    A missing data set is one line on standard error and exit status 1.
    """

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    def main() -> None:
        """Find or fetch the data set."""

    @main.command(name="where")
    def where_command() -> None:
        """Print where each file is found, after checking it; what only the home of the data set has is downloaded."""
        with one_line_errors():
            for line in where():
                click.echo(line)

    @main.command(name="fetch")
    def fetch_command() -> None:
        """Fill the cache folder without root, and print what was filled."""
        with one_line_errors():
            click.echo(fetch())

    return main


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn DataMissing into one line on standard error and exit status 1."""
    try:
        yield
    except sources.DataMissing as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error
