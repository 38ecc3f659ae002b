"""`edgepress rollback`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from edgepress_protocol.errors import Unavailable

from edgepress_host.cli._shared import (
    Settings,
    controller,
    devices_option,
    json_option,
    no_wait_option,
    pass_settings,
    print_json,
    say,
)

if TYPE_CHECKING:
    from edgepress_host.client.client import Client


@click.command()
@devices_option
@no_wait_option
@json_option
@pass_settings
def command(settings: Settings, devices: str, wait: bool, as_json: bool) -> None:
    """Set devices back to the variant that they ran before."""
    with controller(settings) as client:
        back = client.roll_back(devices).devices
        names = {view.manifest: f"{view.variant}:{view.format}" for view in client.manifests()}
        for device, manifest in sorted(back.items()):
            say(f"{device} goes back to {names.get(manifest, manifest[:12])}")
        failures = _wait(client, back) if wait else {}
    if as_json:
        print_json({"devices": back, "failed": failures})
    if failures:
        raise Unavailable("; ".join(f"{device}: {reason}" for device, reason in sorted(failures.items())))


def _wait(client: Client, back: dict[str, str]) -> dict[str, str]:
    """Wait until every online device runs what it goes back to; returns those that failed, with their reasons."""
    failures: dict[str, str] = {}
    offline: set[str] = set()

    def look() -> bool:
        failures.clear()
        offline.clear()
        waiting = False
        for view in client.devices():
            wanted = back.get(view.id)
            if wanted is None or (view.active is not None and view.active.manifest == wanted):
                continue
            status = view.deployment
            if status and status.phase == "failed" and view.wanted and status.deployment == view.wanted.id:
                failures[view.id] = status.reason
            elif not view.online:
                offline.add(view.id)
            else:
                waiting = True
        return not waiting

    client.follow(look)
    for device in sorted(offline):
        say(f"{device} is offline, and goes back when it comes again")
    return failures
