"""`edgepress-agent install`, `uninstall`, `upgrade`, `status`, `logs`: the agent as a service of systemd."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from edgepress_protocol.errors import UsageError
from edgepress_protocol.topics import check_name

from edgepress_agent.cli.config_file import DEFAULT_CONFIG, read_config
from edgepress_agent.cli.run import run
from edgepress_agent.settings import parse_broker, read_key

if TYPE_CHECKING:
    from edgepress_agent.install.plan import File

_ROOT = click.option(
    "--root",
    default=Path("/"),
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    show_default=True,
    help="The system to change: a mounted image, say.",
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--broker", metavar="URL", help="mqtt://host:port, or mqtts:// for TLS.")
@click.option("--id", "device_id", help="This device's name in the fleet.  [default: the board's host name]")
@click.option("--trust", type=_FILE, metavar="KEY.pub", help="Public key of the host to obey; it is copied.")
@click.option("--fleet", help="The fleet's name.")
@click.option("--username", help="Login at the broker.")
@click.option("--password-file", type=_FILE, help="File that holds the broker's password; it is copied.")
@click.option("--ca", type=_FILE, help="Authority that signed the broker's certificate; it is copied.")
@click.option("--program", metavar="COMMAND", help="How the agent is started there.  [default: as this one]")
@click.option("--no-start", is_flag=True, help="Start the service at the next boot, not now.")
@_ROOT
@_DRY_RUN
def install(root: Path, program: str | None, *, dry_run: bool, no_start: bool, **given: Any) -> None:
    """Make the agent a service: its user, folders, configuration and unit, for the groups and devices of this board.

    With --broker and --trust it writes /etc/edgepress/agent.toml; a file that is there already is kept, and yours to
    edit. Without either the service waits for that file. Doing it again changes what has changed.
    """
    from edgepress_agent.install import facts as board
    from edgepress_agent.install import plan

    root = root.absolute()
    config_path = board.under(root, plan.CONFIG)
    found = board.facts(root, program or board.this_program(), config=plan.CONFIG, unit=plan.UNIT)
    config, beside = _config(given, board.host_name(root))
    if config and found.configured:
        raise UsageError(f"{plan.CONFIG} is there already: edit it, or remove it before --broker and --trust")
    if not config and found.configured:
        read_config(config_path, run)
    if program is None and root == Path("/"):
        board.check_reachable(found.program)
    steps = plan.install(found, config, beside, start=not no_start)
    _go(steps, root, dry_run=dry_run)
    if not config and not found.configured:
        click.echo(f"no {plan.CONFIG} yet: the service waits for it; give --broker URL and --trust KEY.pub")


@click.command()
@click.option("--purge", is_flag=True, help="Remove the configuration and the state folder, models included, too.")
@_ROOT
@_DRY_RUN
def uninstall(root: Path, *, purge: bool, dry_run: bool) -> None:
    """Stop the service and take it away; configuration and models stay unless --purge is given."""
    from edgepress_agent.install import facts as board
    from edgepress_agent.install import plan

    root = root.absolute()
    found = board.facts(root, "", config=plan.CONFIG, unit=plan.UNIT)
    _go(plan.uninstall(found, purge=purge), root, dry_run=dry_run)
    if not dry_run:
        click.echo(plan.left_behind(purge=purge))


@click.command()
@click.option("--to", metavar="WHEEL", help="A wheel, or another requirement for pip.")
@click.option("--program", metavar="COMMAND", help="An agent that is installed already, in place of --to.")
@_ROOT
def upgrade(to: str | None, program: str | None, root: Path) -> None:
    """Let the service start another edition of the agent, held against this one first, or go back.

    The other edition comes into a virtual environment beside the one in use, with the same runtimes. Where its agent
    does not start, lacks a runtime or speaks no protocol that the present one speaks, the service stays as it is.
    """
    from edgepress_agent.install import facts as board
    from edgepress_agent.install import plan
    from edgepress_agent.install import upgrade as change

    # No default: edgepress is on no package index yet, where anybody may take its name.
    if (to is None) == (program is None):
        raise UsageError("expected one of --to WHEEL (`make wheel` in a clone makes it) and --program COMMAND")
    root = root.absolute()
    unit = board.under(root, plan.UNIT)
    old = change.program_of(unit)

    def new() -> str:
        if program is not None:
            return program
        assert to is not None
        runtimes = [each.name for each in change.probed(old).runtimes]
        return change.environment_beside(old, to, runtimes, click.echo)

    change.upgrade(unit, root, new, click.echo)


@click.command()
@click.option("--config", type=_FILE, default=DEFAULT_CONFIG, show_default=True, help="The agent's configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(config: Path, *, as_json: bool) -> None:
    """Print how this board's agent stands: the service, the connection, the active model, the disk."""
    from edgepress_protocol.printing import indented

    from edgepress_agent.install import status as board

    values = read_config(config, run)
    if missing := [name for name in ("broker", "device_id", "state_dir") if name not in values]:
        raise UsageError(f"--config {config}: no {', '.join(missing).replace('device_id', 'id')} in it")
    found = board.status(values, str(parse_broker(values["broker"])))
    click.echo(indented(found) if as_json else board.describe(found))


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("-n", "--lines", default=100, type=click.IntRange(min=1), show_default=True, help="How many, at most.")
def logs(lines: int, *, follow: bool) -> None:
    """Print what the service has logged, out of the journal."""
    from edgepress_agent.install.unit import SERVICE

    journalctl = shutil.which("journalctl")
    if journalctl is None:
        raise UsageError("journalctl is not there: the log is on the standard error of `edgepress-agent run`")
    more = ["--follow"] if follow else ["--no-pager"]
    os.execv(journalctl, [journalctl, f"--unit={SERVICE}", f"--lines={lines}", "--output=short-iso", *more])  # noqa: S606


def _config(given: dict[str, Any], host_name: str) -> tuple[dict[str, str], list[File]]:
    """Check what is asked for as `run` would, and return the configuration and the files beside it.

    They are copied: the service can see nobody's home folder, and a password is for its user alone.
    """
    from edgepress_agent.install import plan

    options = {name: value for name, value in given.items() if value is not None}
    if not options:
        return {}, []
    if missing := [f"--{name}" for name in ("broker", "trust") if name not in options]:
        raise UsageError(f"{' and '.join(missing)} missing: a new configuration needs --broker URL and --trust KEY.pub")
    trust: Path = options.pop("trust")
    read_key(trust)
    broker = options.pop("broker")
    parse_broker(broker, ca=options.get("ca"))
    device_id = check_name(options.pop("device_id", host_name), "--id")
    if "fleet" in options:
        check_name(options["fleet"], "--fleet")
    beside = [plan.File(plan.HOST_KEY, _text("--trust", trust))]
    for option, target, private in (("password_file", plan.PASSWORD, True), ("ca", plan.AUTHORITY, False)):
        if option in options:
            text = _text(f"--{option.replace('_', '-')}", options[option])
            beside.append(plan.File(target, text, private=private))
            options[option] = target
    return plan.config_for(broker, device_id, {name: str(value) for name, value in options.items()}), beside


def _text(option: str, path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {path}: {getattr(error, 'strerror', None) or 'no text in UTF-8'}") from error


def _go(steps: list[Any], root: Path, *, dry_run: bool) -> None:
    from edgepress_agent.install.carry_out import carry_out, describe

    if dry_run:
        for step in steps:
            click.echo(describe(step, root))
    else:
        carry_out(steps, root, click.echo)
