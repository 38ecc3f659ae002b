"""`edgepress gc`."""

from __future__ import annotations

import click

from edgepress_host import units
from edgepress_host.cli._shared import Settings, controller, json_option, pass_settings, print_json


@click.command()
@json_option
@pass_settings
def command(settings: Settings, as_json: bool) -> None:
    """Remove manifests and files from the controller that nothing refers to."""
    with controller(settings) as client:
        removed = client.collect_garbage()
    if as_json:
        print_json(removed)
    else:
        click.echo(
            f"removed {len(removed.manifests)} manifests and {len(removed.blobs)} files, "
            f"{units.size(removed.freed_bytes)} freed"
        )
