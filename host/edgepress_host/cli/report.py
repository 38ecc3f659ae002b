"""`edgepress report`."""

from __future__ import annotations

import time
from pathlib import Path

import click
from edgepress_protocol.errors import Unavailable, UsageError

from edgepress_host.cli._shared import (
    Settings,
    controller,
    json_option,
    pass_settings,
    print_json,
    variants_option,
)


@click.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="File to write.",
)
@variants_option
@json_option
@pass_settings
def command(settings: Settings, out: Path, folder: Path | None, as_json: bool) -> None:
    """Write what was measured and chosen as one HTML page that needs no network.

    It shows the last `edgepress select`. Where that was of another folder than --variants, or there was none, it
    chooses anew, by the recipe's budget.
    """
    from edgepress_host import durable
    from edgepress_host.choice import choices
    from edgepress_host.cli.select import choose, scope_of
    from edgepress_host.reporting import report

    scope = scope_of(folder, {})
    kept = choices.read(settings.choice_file) if settings.choice_file.exists() else None
    with controller(settings) as client:
        made = kept if kept and scope.folder in {None, kept.folder} else choose(client, scope, "kind")
        known = report.Known(client.manifests(), client.measurements(), client.trials(), client.devices())
    if not known.measurements:
        raise UsageError("nothing is measured yet, so there is nothing to report: edgepress profile DIR")
    page = report.render(known, made, time.time()).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        durable.write(out, page)
    except OSError as error:
        raise Unavailable(f"{out}: cannot be written ({error.strerror})") from error
    if as_json:
        print_json({"report": str(out), "bytes": len(page), "measurements": len(known.measurements)})
    else:
        click.echo(f"wrote {out}")
