"""`edgepress deploy`: make a variant the active one, on a few devices first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from edgepress_protocol.errors import Unavailable, UsageError

from edgepress_host.cli._shared import (
    Settings,
    controller,
    devices_option,
    json_option,
    no_wait_option,
    pass_settings,
    print_json,
    say,
    variants_option,
)

if TYPE_CHECKING:
    from edgepress_host.client.artifacts import Artifact
    from edgepress_host.client.client import Client
    from edgepress_host.fleet.rollout import Rollout
    from edgepress_host.server.views import RolloutIn


@click.command()
@click.argument("variant", required=False)
@click.option("--selected", is_flag=True, help="Deploy what `edgepress select` chose, to each kind of board its own.")
@variants_option
@devices_option
@click.option(
    "--canary", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Devices that go first."
)
@click.option(
    "--hold-s",
    metavar="S",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Watch the first ones this long.",
)
@no_wait_option
@json_option
@pass_settings
def command(  # noqa: PLR0913, PLR0917 - one for each option
    settings: Settings,
    variant: str | None,
    selected: bool,
    folder: Path | None,
    devices: str,
    canary: int,
    hold_s: float,
    wait: bool,
    as_json: bool,
) -> None:
    """Make VARIANT (a name, or name:format) the active one; a device that fails sets all back."""
    if selected == (variant is not None):
        raise UsageError("expected either a variant or --selected")
    if selected and devices != "all":
        raise UsageError("--selected goes to the devices that it was chosen for; leave out --devices")
    plans = _selected(settings) if selected else {}
    local = _local(folder, variant) if folder and variant else None
    with controller(settings) as client:
        if variant is not None:
            plans = {devices: _manifest(client, variant, local)}
        rollouts = [_start(client, manifest, selector, canary, hold_s) for selector, manifest in plans.items()]
        if wait:
            names = {view.manifest: f"{view.variant}:{view.format}" for view in client.manifests()}
            try:
                rollouts = _wait(client, rollouts, names)
            except KeyboardInterrupt:
                told = ",".join(sorted({device for rollout in rollouts for device in rollout.devices}))
                say(f"the rollout goes on; take it back with: edgepress rollback --devices {told}")
                raise
    if as_json:
        print_json({"rollouts": rollouts})
    from edgepress_host.fleet.rollout import why

    failed = [rollout for rollout in rollouts if rollout.phase == "failed"]
    if failed:
        raise Unavailable("; ".join(f"rollout failed and was set back: {why(rollout)}" for rollout in failed))


def _start(client: Client, manifest: str, selector: str, canary: int, hold_s: float) -> Rollout:
    from edgepress_host.server.views import RolloutIn

    wanted: RolloutIn = RolloutIn(manifest=manifest, devices=selector, canary=canary, hold_s=hold_s if canary else 0.0)
    return client.roll_out(wanted)


def _local(folder: Path, variant: str) -> Artifact:
    from edgepress_host.choice import naming
    from edgepress_host.client import artifacts

    return naming.only(variant, artifacts.of_folder(folder))


def _manifest(client: Client, variant: str, local: Artifact | None) -> str:
    """Digest of the one manifest that `variant` names; a file of this machine is pushed first."""
    from edgepress_host.choice import naming
    from edgepress_host.client import artifacts

    if local is not None:
        return artifacts.push(client, [local])[local.name]
    return naming.only(variant, naming.latest(client.manifests())).manifest


def _selected(settings: Settings) -> dict[str, str]:
    """Manifest by selector of devices, as the last `edgepress select` chose."""
    from edgepress_host.choice.choices import read

    made = read(settings.choice_file)
    plans = {
        f"id={','.join(choice.devices)}": made.manifests[choice.chosen] for choice in made.choices if choice.chosen
    }
    for choice in made.choices:
        if not choice.chosen:
            say(f"{choice.group}: {choice.why}, so nothing is deployed there")
    if not any(choice.measured for choice in made.choices):
        raise UsageError(
            "the last `edgepress select` found nothing measured; run `edgepress profile DIR` and select again"
        )
    if not plans:
        raise UsageError("the last `edgepress select` chose nothing; widen the budget and select again")
    return plans


def _wait(client: Client, rollouts: list[Rollout], names: dict[str, str]) -> list[Rollout]:
    """Follow the rollouts to their ends, saying each phase once; one that waits for absent devices goes on alone."""
    from edgepress_host.cli._watch import AWAY_S, Absent, absence, wait_for_devices
    from edgepress_host.fleet.rollout import told

    latest = {rollout.id: rollout for rollout in rollouts}
    said: dict[str, str] = {}
    absent = Absent()
    left: set[str] = set()
    wait_for_devices(client, {device for rollout in rollouts for device in rollout.devices})

    def look() -> bool:
        for rollout_id in latest:
            rollout = latest[rollout_id] = client.rollout(rollout_id)
            if said.get(rollout_id) != rollout.phase:
                said[rollout_id] = rollout.phase
                say(told(rollout, names.get(rollout.manifest, rollout.manifest[:12])))
        views = client.devices()
        active = {(view.id, view.active.deployment) for view in views if view.active}
        waited_for = [
            {device for device in rollout.previous if (device, rollout.id) not in active}
            for rollout in latest.values()
            if rollout.open
        ]
        left.clear()
        left.update(*waited_for)
        away = absent.among(views)
        return all(devices and devices <= away for devices in waited_for)

    client.follow(look, tick_s=AWAY_S / 3)
    if left:
        say(f"the rollout goes on by itself when they come: {absence(client, left)}")
    return list(latest.values())
