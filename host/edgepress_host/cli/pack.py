"""`edgepress pack`."""

from __future__ import annotations

from pathlib import Path

import click
from edgepress_protocol.errors import UsageError
from edgepress_protocol.manifest import digest

from edgepress_host import units
from edgepress_host.cli._shared import console, json_option, print_json, safe, table

SUFFIX = ".epc"
_NAME_LENGTH = 60


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="PATH", help="Default: FILE.epc.")
@json_option
def command(file: Path, out: Path | None, as_json: bool) -> None:
    """Pack a model FILE without loss, and say what each of its tensors takes.

    The result is an edgepress container, or plain zstd where that is smaller. `edgepress unpack` gives the very bytes
    back. Files travel to boards in the same form by themselves; this is for archives and for looking.
    """
    from edgepress_host import durable, packing

    out = out or file.with_name(file.name + SUFFIX)
    data = file.read_bytes()
    packed = packing.pack(data)
    try:
        durable.write_new(out, packed.content)
    except FileExistsError:
        raise UsageError(f"{out}: exists already; remove it, or name another file with --out") from None
    if as_json:
        sizes = {"file_bytes": len(data), "packed_bytes": len(packed.content), "form": packed.form}
        print_json({"out": str(out), "sha256": digest(data), **sizes, "parts": packed.parts})
        return
    if packed.parts:
        shown = table(["tensor", "bytes", "packed", "layout"], right=["bytes", "packed"])
        for part in packed.parts:
            took = units.BLANK if part.packed_bytes is None else units.count(part.packed_bytes)
            shown.add_row(safe(_short(part.name)), units.count(part.bytes), took, part.layout)
        console().print(shown)
        if any(part.packed_bytes is None for part in packed.parts):
            click.echo(f"{units.BLANK}: short tensors share one frame, which is in the last row")
    ratio = len(data) / len(packed.content)
    click.echo(
        f"{out}: {units.size(len(data))} → {units.size(len(packed.content))} as {packed.form}, {ratio:.3g} times"
    )


def _short(name: str) -> str:
    """Keep the end of a name, which tells tensors apart."""
    return name if len(name) <= _NAME_LENGTH else f"…{name[-_NAME_LENGTH:]}"
