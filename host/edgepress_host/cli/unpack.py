"""`edgepress unpack`."""

from __future__ import annotations

from pathlib import Path

import click
from edgepress_protocol.errors import Rejected, UsageError
from edgepress_protocol.manifest import digest

from edgepress_host import units
from edgepress_host.cli._shared import json_option, print_json
from edgepress_host.cli.pack import SUFFIX


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="PATH", help="Default: without .epc.")
@json_option
def command(file: Path, out: Path | None, as_json: bool) -> None:
    """Give back the very bytes that `edgepress pack` packed into FILE."""
    from edgepress_host import durable, packing

    if out is None:
        if file.suffix != SUFFIX:
            raise UsageError(f"{file}: does not end in {SUFFIX}; name the file to write with --out")
        out = file.with_suffix("")
    try:
        data = packing.unpack(file.read_bytes())
        durable.write_new(out, data)
    except Rejected as error:
        raise Rejected(f"{file}: {error}; nothing was written") from error
    except FileExistsError:
        raise UsageError(f"{out}: exists already; remove it, or name another file with --out") from None
    if as_json:
        print_json({"out": str(out), "sha256": digest(data), "file_bytes": len(data)})
    else:
        click.echo(f"{out}: {units.size(len(data))}, SHA-256 {digest(data)}")
