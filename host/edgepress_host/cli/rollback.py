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


NOTHING_BEFORE = "ran nothing before: what it runs now stays until another variant is deployed"


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
            say(
                f"{device} goes back to {names.get(manifest, manifest[:12])}"
                if manifest
                else f"{device} {NOTHING_BEFORE}"
            )
        failures = _wait(client, back) if wait else {}
    if as_json:
        print_json({"devices": back, "failed": failures})
    if failures:
        raise Unavailable("; ".join(f"{device}: {reason}" for device, reason in sorted(failures.items())))


def _wait(client: Client, back: dict[str, str]) -> dict[str, str]:
    """Wait until every device that is not absent runs what it goes back to; returns why others failed."""
    from edgepress_host.cli._watch import AWAY_S, Absent, absence, wait_for_devices

    failures: dict[str, str] = {}
    left: set[str] = set()
    absent = Absent()
    wait_for_devices(client, {device for device, manifest in back.items() if manifest})

    def look() -> bool:
        failures.clear()
        left.clear()
        waiting = False
        views = client.devices()
        away = absent.among(views)
        for view in views:
            wanted = back.get(view.id)
            if not wanted or (view.active is not None and view.active.manifest == wanted):
                continue
            status = view.deployment
            if status and status.phase == "failed" and view.wanted and status.deployment == view.wanted.id:
                failures[view.id] = status.reason
            elif view.id in away:
                left.add(view.id)
            else:
                waiting = True
        return not waiting

    client.follow(look, tick_s=AWAY_S / 3)
    if left:
        say(f"these go back when they come: {absence(client, left)}")
    return failures
