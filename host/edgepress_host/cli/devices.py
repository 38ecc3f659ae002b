"""`edgepress devices`: who is in the fleet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
from edgepress_protocol.errors import Unavailable, UsageError

from edgepress_host import units
from edgepress_host.cli._shared import (
    Settings,
    console,
    controller,
    json_option,
    pass_settings,
    print_json,
    safe,
    say,
    table,
)
from edgepress_host.served import served

if TYPE_CHECKING:
    from edgepress_host.client.client import Client
    from edgepress_host.server.views import DeviceView


LOOK_S = 5.0
"""How often, at least, the devices are looked at while they are waited for."""


@click.group(invoke_without_command=True)
@click.option("--wait", "awaited", metavar="ID[,ID…]", help="Wait first until these are online.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait."
)
@json_option
@pass_settings
@click.pass_context
def command(context: click.Context, settings: Settings, awaited: str | None, timeout_s: float, as_json: bool) -> None:
    """List the devices: presence, board, runtimes, what they run."""
    if context.invoked_subcommand is not None:
        return
    with controller(settings) as client:
        if awaited:
            _wait(client, {name.strip() for name in awaited.split(",")}, timeout_s)
        _list(client, as_json)


@command.command()
@click.argument("device")
@json_option
@pass_settings
def remove(settings: Settings, device: str, as_json: bool) -> None:
    """Forget a device whose agent has ended, and clear what the broker keeps for it."""
    with controller(settings) as client:
        # It would not say again who it is before its next start, and be missing until then.
        if any(view.id == device and view.online for view in client.devices()):
            raise UsageError(
                f"{device} is connected: end its agent first, with `edgepress-agent uninstall` on the board"
            )
        client.forget_device(device)
    if as_json:
        print_json({"removed": device})
    else:
        click.echo(f"removed {device}")


def _wait(client: Client, names: set[str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    seq = client.last_seq()
    while missing := names - {view.id for view in client.devices() if view.online}:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unavailable(f"not online after {timeout_s:g} s: {', '.join(sorted(missing))}")
        seq = client.changes(seq, min(left, LOOK_S)).seq


def _list(client: Client, as_json: bool) -> None:
    devices, health = client.devices(), client.health()
    names = {view.manifest: f"{view.variant}:{view.format}" for view in client.manifests()}
    if as_json:
        print_json({"devices": devices})
        return
    if not devices:
        if client.transient:
            say("no device has come yet: start `edgepress serve`; the broker of this command ends with it")
        else:
            joining = f"edgepress-agent run --broker {health.broker} --id NAME --state-dir DIR"
            say(f"no device has come yet: {joining} --trust {health.public_key_file}")
        return
    shown = table(("device", "", "board", "kind", "memory", "runtimes", "active", "trials"), right=("memory", "trials"))
    for view in devices:
        board = view.device.board
        runtimes = ", ".join(f"{runtime.name} {runtime.version}" for runtime in view.device.runtimes)
        active = names.get(view.active.manifest, view.active.variant) if view.active else units.BLANK
        shown.add_row(
            safe(view.id),
            _presence(view),
            safe(board.model) + (" [dim](simulated)[/]" if board.simulated else ""),
            safe(board.kind),
            units.size(board.memory_bytes),
            safe(runtimes) or units.BLANK,
            safe(active),
            str(view.open_trials),
        )
    console().print(shown)
    for view in devices:
        if view.refused:
            say(f"{view.id}: refused: {view.refused}")
        if line := served(view.telemetry):
            say(f"{view.id} serves: {line}")


def _presence(view: DeviceView) -> str:
    if view.refused:
        return "[red]refused[/]"
    return "[green]online[/]" if view.online else "[dim]offline[/]"
