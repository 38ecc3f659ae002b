"""`edgepress-agent run`: the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from edgepress_protocol.errors import UsageError
from edgepress_protocol.topics import check_name

from edgepress_agent.cli.config_file import config_option
from edgepress_agent.log import LEVEL_NAMES
from edgepress_agent.settings import Settings, Timing, check_serve, parse_broker, read_key

_FOLDER = click.Path(path_type=Path, file_okay=False)
_THERE = click.Path(path_type=Path, file_okay=False, exists=True)
_FILE = click.Path(path_type=Path)
_LONGEST_PASSWORD = 65_535


@dataclass(frozen=True)
class RunOptions:
    """The options of `run`, as click has read them."""

    broker: str
    device_id: str
    state_dir: Path
    trust: Path
    fleet: str
    root: Path
    serve: str
    measure_lock: Path | None
    runtime: tuple[str, ...]
    username: str | None
    password_file: Path | None
    password: str | None
    ca: Path | None
    connect_timeout: float | None
    keepalive: int
    reconnect_max: float
    log_level: str

    def settings(self) -> Settings:
        """Check them.

        Raises:
            UsageError: one of them cannot be.
        """
        state_dir = self.state_dir.absolute()
        return Settings(
            broker=parse_broker(
                self.broker,
                username=self.username,
                password=self._password_of_file(),
                default_password=self.password,
                ca=self.ca,
            ),
            device_id=check_name(self.device_id, "--id"),
            fleet=check_name(self.fleet, "--fleet"),
            state_dir=state_dir,
            trusted=read_key(self.trust),
            root=self.root,
            serve=check_serve(self.serve, state_dir),
            measure_lock=self.measure_lock,
            timing=Timing(
                keepalive_s=self.keepalive,
                reconnect_max_s=self.reconnect_max,
                connect_timeout_s=self.connect_timeout,
            ),
        )

    def _password_of_file(self) -> str | None:
        if self.password_file is None:
            return None
        try:
            password = self.password_file.read_text("utf-8").strip()
        except FileNotFoundError as error:
            raise UsageError(f"--password-file {self.password_file}: no such file") from error
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise UsageError(f"--password-file {self.password_file}: {reason}") from error
        if len(password.encode()) > _LONGEST_PASSWORD:
            raise UsageError(f"--password-file {self.password_file}: MQTT takes {_LONGEST_PASSWORD:,} bytes at most")
        return password


@click.command()
@config_option
@click.option("--broker", required=True, metavar="URL", help="mqtt://[user:password@]host:port, or mqtts:// for TLS.")
@click.option("--id", "device_id", required=True, help="This device's name in the fleet.")
@click.option("--state-dir", required=True, type=_FOLDER, help="Where models and state are kept.")
@click.option("--trust", required=True, type=_FILE, metavar="KEY.pub", help="Public key of the host to obey.")
@click.option("--fleet", default="default", show_default=True, help="The fleet's name.")
@click.option("--root", default=Path("/"), type=_THERE, show_default=True, help="Where sensors are read.")
@click.option(
    "--serve", default="", metavar="ADDRESS", help="HOST:PORT, unix:PATH or off  [default: unix:STATE_DIR/serve.sock]"
)
@click.option(
    "--measure-lock", type=_FILE, help="Agents that share it measure in turn.  [default: STATE_DIR/measure.lock]"
)
@click.option(
    "--runtime", multiple=True, metavar="NAME", help="Offer only this runtime, by its package's name; can be repeated."
)
@click.option("--username", help="Login at the broker.")
@click.option("--password-file", type=_FILE, help="File that holds the broker's password.")
@click.option("--password", envvar="EDGEPRESS_PASSWORD", hidden=True)
@click.option("--ca", type=_FILE, help="Authority that signed the broker's certificate, for mqtts://.")
@click.option(
    "--connect-timeout", type=click.FloatRange(0.1, 86_400), metavar="S", help="Give up if not connected by then."
)
@click.option(
    "--keepalive", default=15, type=click.IntRange(2, 3600), show_default=True, metavar="S", help="MQTT keep-alive."
)
@click.option(
    "--reconnect-max",
    default=30.0,
    type=click.FloatRange(0.2, 86_400),
    show_default=True,
    metavar="S",
    help="Longest pause between two tries to connect.",
)
@click.option("--log-level", default="info", type=click.Choice(LEVEL_NAMES), show_default=True)
def run(**given: Any) -> None:
    """Run the daemon until SIGTERM or Ctrl-C.

    What stands in --config FILE need not be given here; what is given here wins over it. The broker's password can also
    come from EDGEPRESS_PASSWORD. With another --root than / every reading is marked
    simulated.
    """
    from edgepress_agent import lean

    options = RunOptions(**given)
    lean.become(lean.Start(options.settings(), options.log_level, options.runtime))
