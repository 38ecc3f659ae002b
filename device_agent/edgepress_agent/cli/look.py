"""`edgepress-agent probe` and `version`: what this board and this agent are."""

from __future__ import annotations

from pathlib import Path

import click
from edgepress_protocol.version import SPOKEN

from edgepress_agent import installed

_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command()
@click.option("--root", default=Path("/"), type=_FOLDER, show_default=True, help="Where sensors are read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def probe(root: Path, *, as_json: bool) -> None:
    """Print what the agent sees of this board."""
    from edgepress_agent.board import describe
    from edgepress_agent.board.probe import see

    # The disk that an agent's folder is on as a rule; where the user stands may be gone.
    seen = see(root, device_id="probe", state_dir=Path("/"))
    click.echo(describe.as_json(seen) if as_json else describe.as_text(seen))


@click.command()
def version() -> None:
    """Print the version of edgepress, and the protocol that it speaks."""
    low, high = SPOKEN
    spoken = f"{low}" if low == high else f"{low} to {high}"
    click.echo(f"edgepress-agent {installed.version('edgepress') or 'unknown'}, protocol {spoken}")
