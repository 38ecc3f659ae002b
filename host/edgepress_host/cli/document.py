"""`python -m edgepress_host.cli.document > docs/commands.md`: every command, from the commands themselves."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import click

from edgepress_host.cli import edgepress

HEAD = """# Commands of `edgepress`

Written by `python -m edgepress_host.cli.document > docs/commands.md`; a test fails where it is out of date.

With `--json` a command prints JSON on standard output and nothing else there; words for people go to standard error.
Exit status: 0 done, 1 something is not there or failed (one line says what), 2 the command line or a file of yours is
wrong (one line says where), 130 stopped by Ctrl-C.
"""


def document() -> str:
    """Return the page, in Markdown."""
    with click.Context(edgepress, info_name="edgepress", terminal_width=100) as context:
        return "\n".join([HEAD, *_sections(edgepress, context)]).rstrip() + "\n"


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"{'##' if context.parent is None or context.parent.parent is None else '###'} {context.command_path}\n"
    yield f"```text\n{context.get_usage().removeprefix('Usage: ')}\n```\n"
    paragraphs = inspect.cleandoc(command.help or "").replace("\b\n", "").replace("\b", "")
    if paragraphs:
        yield f"{paragraphs}\n"
    options = [
        record
        for option in command.params
        if isinstance(option, click.Option) and (record := option.get_help_record(context)) is not None
    ]
    if options:
        yield "| option | |\n| --- | --- |"
        yield "\n".join(f"| `{_cell(name)}` | {_cell(words)} |" for name, words in options) + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            with click.Context(inner, info_name=name, parent=context) as below:
                yield from _sections(inner, below)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document())
