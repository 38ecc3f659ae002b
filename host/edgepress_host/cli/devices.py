"""`edgepress devices`: who is in the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

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

if TYPE_CHECKING:
    from edgepress_host.server.views import DeviceView


@click.group(invoke_without_command=True)
@json_option
@pass_settings
@click.pass_context
def command(context: click.Context, settings: Settings, as_json: bool) -> None:
    """List the devices: presence, board, runtimes, what they run."""
    if context.invoked_subcommand is None:
        _list(settings, as_json)


@command.command()
@click.argument("device")
@json_option
@pass_settings
def remove(settings: Settings, device: str, as_json: bool) -> None:
    """Forget a device, and clear what the broker keeps for it."""
    with controller(settings) as client:
        client.forget_device(device)
    if as_json:
        print_json({"removed": device})
    else:
        click.echo(f"removed {device}")


def _list(settings: Settings, as_json: bool) -> None:
    with controller(settings) as client:
        devices, health = client.devices(), client.health()
        names = {view.manifest: f"{view.variant}:{view.format}" for view in client.manifests()}
    if as_json:
        print_json({"devices": devices})
        return
    if not devices:
        say(
            f"no device has come yet: edgepress-agent run --broker {health.broker} --id NAME --state-dir DIR"
            f" --trust {health.public_key_file}"
        )
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


def _presence(view: DeviceView) -> str:
    if view.refused:
        return "[red]refused[/]"
    return "[green]online[/]" if view.online else "[dim]offline[/]"
