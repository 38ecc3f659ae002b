"""`edgepress serve`: the controller, in the foreground."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from edgepress_host.cli._shared import Settings, pass_settings


@click.command("serve")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    show_default="a free one",
    help="Port of page and REST, on 127.0.0.1.",
)
@click.option(
    "--bind", metavar="ADDR[:PORT]", help="Open the embedded broker to a network; devices then need the password."
)
@click.option("--broker", metavar="URL", help="Use this broker instead: mqtt://user:password@host:port, or mqtts://…")
@click.option(
    "--broker-port",
    type=click.IntRange(1, 65_535),
    show_default="that of the last time",
    help="Port of the embedded broker on 127.0.0.1.",
)
@click.option("--fleet", default="default", show_default=True, help="Name of the fleet.")
@click.option(
    "--keys",
    "keys_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the key pair.  [default: DATA_DIR/keys]",
)
@click.option(
    "--bandwidth",
    metavar="BYTES_S",
    type=click.FloatRange(min=1),
    help="Send files no faster than this, in bytes per second.",
)
@pass_settings
def command(
    settings: Settings,
    port: int,
    bind: str | None,
    broker: str | None,
    broker_port: int | None,
    fleet: str,
    keys_dir: Path | None,
    bandwidth: float | None,
) -> None:
    """Run the controller of a fleet: broker, database, REST and page.

    Prints one line when it is ready, and runs until Ctrl-C or SIGTERM.
    """
    from edgepress_protocol.errors import UsageError
    from edgepress_protocol.topics import check_name

    from edgepress_host.server import settings as server
    from edgepress_host.server.controller import run

    if bind and broker:
        raise UsageError("--bind opens the embedded broker, --broker uses another one: give one of them")
    if broker_port and (bind or broker):
        raise UsageError("--broker-port is for the embedded broker on loopback: write the port into --bind or --broker")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run(
        server.Settings(
            data_dir=settings.data_dir,
            keys_dir=keys_dir or settings.keys_dir,
            fleet=check_name(fleet, "fleet"),
            port=port,
            bind=bind,
            broker_url=broker,
            broker_port=broker_port,
            bytes_per_s=bandwidth,
        ),
        ready=click.echo,
    )
