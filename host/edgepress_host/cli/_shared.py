"""What commands share: settings, `--json`, tables, and words on standard error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
from edgepress_protocol.printing import indented

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console
    from rich.table import Table

    from edgepress_host.client.client import Client

PIPED_WIDTH = 180
"""Columns of a table that goes into a file or a pipe, where nobody knows a width."""

F = TypeVar("F", bound=Callable[..., Any])


class Settings(msgspec.Struct, frozen=True):
    """What every command is given."""

    data_dir: Path
    broker: str | None = None

    @property
    def keys_dir(self) -> Path:
        """Folder of the key pair."""
        return self.data_dir / "keys"

    @property
    def choice_file(self) -> Path:
        """The last choice that `edgepress select` made."""
        return self.data_dir / "choice.json"


pass_settings = click.make_pass_decorator(Settings)


def controller(settings: Settings) -> AbstractContextManager[Client]:
    """Connect to the running controller, or to one started for this command."""
    from edgepress_host.client.client import connect

    return connect(settings.data_dir, say, broker=settings.broker)


def default_data_dir() -> Path:
    """Folder of a user's data, after the XDG base directory specification."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "edgepress"


def json_option(function: F) -> F:
    """`--json`: data on standard output, and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")(function)


def devices_option(function: F) -> F:
    """`--devices SELECTOR`."""
    return click.option(
        "--devices",
        default="all",
        show_default=True,
        metavar="SELECTOR",
        help="Devices by id (pi-1,pi-2), kind=raspberry-pi-5, runtime=onnx, or all.",
    )(function)


def no_wait_option(function: F) -> F:
    """`--no-wait`."""
    return click.option("--no-wait", "wait", flag_value=False, default=True, help="Return at once.")(function)


def variants_option(function: F) -> F:
    """`--variants DIR`."""
    return click.option(
        "--variants",
        "folder",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder that `edgepress compress` wrote.",
    )(function)


def print_json(data: object) -> None:
    """Print records or plain data as JSON on standard output."""
    click.echo(indented(data))


def say(line: str) -> None:
    """Tell the user something beside the data; it may hold words of a device."""
    click.echo(printable(line), err=True)


def console(*, stderr: bool = False) -> Console:
    """Return a terminal to draw on; rich is imported late, it costs a tenth of a second."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = PIPED_WIDTH
    return made


def table(columns: Iterable[str], *, title: str | None = None, right: Iterable[str] = ()) -> Table:
    """Make an empty table in the house's style; `right` names the columns of numbers."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    numbers = set(right)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def safe(text: object) -> str:
    """Text of a device or a file, made harmless for a table: no control characters, no markup."""
    from rich.markup import escape

    return escape(printable(str(text)))


def printable(text: str) -> str:
    r"""Text of others, made harmless for a terminal.

    >>> printable("done \x1b[2J")
    'done ?[2J'
    """
    return "".join(c if c.isprintable() else "?" for c in text)
