"""The command `edgepress-agent`; each file beside this one holds commands, which are listed in `COMMANDS`.

A command imports what it needs when it is called: the daemon must carry nothing of the others.
"""

from __future__ import annotations

import sys

import click
from edgepress_protocol.errors import EdgepressError

from edgepress_agent import installed, lean
from edgepress_agent.cli import bench, look, run, service

COMMANDS = (
    run.run,
    bench.bench,
    look.probe,
    look.version,
    service.install,
    service.uninstall,
    service.upgrade,
    service.status,
    service.logs,
)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2."""
    try:
        status = cli(prog_name="edgepress-agent", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as bare:
        bare.show()
        status = bare.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "edgepress-agent"
        lean.fail(f"{error.format_message()} (see {command} --help)", error.exit_code)
    except click.Abort:
        sys.exit(130)
    except EdgepressError as error:
        lean.fail(str(error), lean.status_of(error))
    sys.exit(status or 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(installed.version("edgepress"), prog_name="edgepress-agent")
def cli() -> None:
    """Run models on this board, measure them, and tell the host."""


for _command in COMMANDS:
    cli.add_command(_command)
