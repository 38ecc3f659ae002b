"""`edgepress`: one command per file of this folder; the file's `command` is what runs.

Heavy libraries (torch, the runtimes, the web server) load inside the commands that need them, so that `--help` and
completion answer at once. Errors of ours become one line here and nowhere else.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from edgepress_protocol.errors import EdgepressError, UsageError

from edgepress_host.cli._shared import Settings, default_data_dir, printable

INTERRUPTED = 130


class Commands(click.Group):
    """The files of this folder as commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names of the files, sorted."""
        return sorted(info.name for info in pkgutil.iter_modules(__path__) if not _is_helper(info.name))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command's file."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see `edgepress --help`"
            raise UsageError(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


def _is_helper(name: str) -> bool:
    return name.startswith("_") or name == "document"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="edgepress", prog_name="edgepress")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="EDGEPRESS_HOME",
    show_envvar=True,
    help="Keys, database and blobs of the controller; by default ~/.local/share/edgepress.",
)
@click.option(
    "--broker",
    metavar="URL",
    envvar="EDGEPRESS_BROKER",
    show_envvar=True,
    help="Broker for a controller that a command starts for itself: mqtt://user:password@host:port.",
)
@click.pass_context
def edgepress(context: click.Context, data_dir: Path | None, broker: str | None) -> None:
    """Press a model until it fits the board, and prove it on the board."""
    context.obj = Settings(data_dir=data_dir or default_data_dir(), broker=broker)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line, and turn what went wrong into one line and an exit status."""
    try:
        status = edgepress.main(arguments, prog_name="edgepress", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as left:
        status = left.exit_code
    except click.exceptions.NoArgsIsHelpError as bare:
        bare.show()
        status = bare.exit_code
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing more to say, nor anywhere to say it.
        _drop_output()
        status = 0
    except (click.ClickException, EdgepressError, ImportError, OSError, KeyboardInterrupt, click.Abort) as error:
        status = _ended(error)
    sys.exit(status if isinstance(status, int) else 0)


def _ended(error: BaseException) -> int:
    """Say in one line why a command ended, and return its exit status."""
    match error:
        case click.ClickException():
            return _say(_usage(error), 2)
        case UsageError():
            return _say(str(error), 2)
        case EdgepressError():
            return _say(str(error), 1)
        case ModuleNotFoundError(name=str(name)) if not name.startswith("edgepress"):
            return _say(f"{name} is not installed: this needs the host's parts, edgepress[host]", 1)
        case ImportError():
            raise error
        case OSError():
            # What the machine refuses (a folder, a full disk) and nobody nearer has found better words for.
            if error.filename is None:
                _drop_output()
            where = f"{error.filename}: " if error.filename is not None else ""
            return _say(f"{where}{error.strerror or error}", 1)
    return _say("stopped", INTERRUPTED, prefix="")


def _drop_output() -> None:
    """Let what is still buffered for standard output go nowhere: it would fail once more at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: click.ClickException) -> str:
    text = error.format_message()
    context: Any = getattr(error, "ctx", None)
    where = f"; see `{context.command_path} --help`" if context is not None else ""
    return text.rstrip(".") + where


def _say(line: str, status: int, *, prefix: str = "error: ") -> int:
    click.echo(prefix + printable(" ".join(line.split())), err=True)
    return status
