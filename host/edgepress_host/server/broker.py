"""The broker: rumqttd of the package `iotcore` in a child process, or any other by its URL.

The embedded one forgets everything when it restarts; nothing here rests on its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from edgepress_protocol.errors import Unavailable, UsageError
from edgepress_protocol.messages import MAX_MESSAGE_BYTES

from edgepress_host import durable

log = logging.getLogger(__name__)

USERNAME = "edgepress"
START_S = 10.0
RESTART_PAUSE_S = 0.2

# Small segments bound the broker's memory per topic; one message may be larger than a segment.
_CONFIG = """\
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 8

[v5.1]
name = "edgepress"
listen = {listen}
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max_payload_bytes}
max_inflight_count = 100
dynamic_filters = true
"""


@dataclass(frozen=True)
class Endpoint:
    """Where a broker is, and how to log in."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    password_file: Path | None = None

    @property
    def url(self) -> str:
        """The URL without the password."""
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{user}{host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """TLS by the system's authorities, where the URL asks for it."""
        return ssl.create_default_context() if self.tls else None


def parse_url(url: str) -> Endpoint:
    """Read `mqtt://[user:password@]host[:port]`, or `mqtts://…`.

    Raises:
        UsageError: it is something else.
    """
    expected = f"broker {url.rpartition('@')[2]!r}: expected mqtt://[user:password@]host[:port], or mqtts://…"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(expected) from error
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.path not in {"", "/"}:
        raise UsageError(expected)
    tls = parts.scheme == "mqtts"
    return Endpoint(
        parts.hostname,
        port or (8883 if tls else 1883),
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        tls,
    )


def embedded_endpoint(bind: str | None, data_dir: Path, port: int | None = None) -> Endpoint:
    """Where the embedded broker is to listen: loopback, or `ADDR[:PORT]` with a password.

    On loopback the port is `port`, else that of the last time, else a free one.

    Raises:
        UsageError: the address is not one of this machine, or its port is taken.
    """
    if bind is None:
        usual = data_dir / "broker-port"
        return Endpoint("127.0.0.1", _usual_port(usual) if port is None else _free_port("127.0.0.1", port))
    address, _, port_text = bind.rpartition(":") if bind.count(":") == 1 or bind.startswith("[") else (bind, "", "")
    if bind.startswith("[") and bind.endswith("]"):
        address, port_text = bind, ""
    if port_text and not (port_text.isdecimal() and int(port_text) < 65_536):
        raise UsageError(f"--bind {bind}: expected ADDRESS or ADDRESS:PORT")
    host = address.strip("[]")
    free = _free_port(host, int(port_text) if port_text else 1883)
    file = data_dir / "broker-password"
    with contextlib.suppress(FileExistsError):
        durable.write_new(file, secrets.token_urlsafe(24).encode(), mode=0o600)
    return Endpoint(host, free, USERNAME, file.read_text().strip(), password_file=file)


def _usual_port(file: Path) -> int:
    """Return the port of the last time, where it is free: devices of this machine look for the broker there."""
    try:
        return _free_port("127.0.0.1", int(file.read_text()))
    except (OSError, ValueError, OverflowError):
        port = _free_port("127.0.0.1", 0)
    except UsageError as error:
        port = _free_port("127.0.0.1", 0)
        log.warning("%s; the broker is at port %d now, and devices that know the former one must be told", error, port)
    durable.write(file, str(port).encode())
    return port


def _free_port(host: str, port: int) -> int:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --bind or --broker-port"
        ) from error


@contextlib.asynccontextmanager
async def embedded(endpoint: Endpoint) -> AsyncIterator[None]:
    """Keep the embedded broker running at `endpoint`: ready on entry, restarted when it dies, gone on exit.

    Raises:
        Unavailable: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="edgepress-broker-") as folder:
        config = Path(folder) / "rumqttd.toml"
        config.touch(mode=0o600)
        config.write_text(_config(endpoint))
        process = await _start(config, endpoint)
        keeper = asyncio.create_task(_keep(process, config, endpoint), name="broker")
        try:
            yield
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper


def _config(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    listen = json.dumps(f"{host}:{endpoint.port}")
    text = _CONFIG.format(listen=listen, max_payload_bytes=2 * MAX_MESSAGE_BYTES)
    if endpoint.username:
        text += f"\n[v5.1.connections.auth]\n{json.dumps(endpoint.username)} = {json.dumps(endpoint.password)}\n"
    return text


async def _keep(process: asyncio.subprocess.Process, config: Path, endpoint: Endpoint) -> None:
    try:
        while True:
            code = await process.wait()
            log.warning("the broker ended with status %s; starting it again", code)
            try:
                process = await _start(config, endpoint)
            except Unavailable as error:
                log.warning("%s; trying again", error)
                await asyncio.sleep(RESTART_PAUSE_S)
    finally:
        if process.returncode is None:
            process.kill()  # it holds nothing that would have to be saved
            await process.wait()


async def _start(config: Path, endpoint: Endpoint) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "edgepress_host.server.broker_process",
        str(config),
        str(os.getpid()),
        start_new_session=True,  # Ctrl-C is for the controller, which says goodbye through the broker
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(START_S):
            while process.returncode is None:
                if await _accepts(endpoint):
                    return process
                await asyncio.sleep(0.02)
    except TimeoutError:
        process.kill()
        await process.wait()
    raise Unavailable(f"the embedded broker did not start on {endpoint.host}:{endpoint.port}")


async def _accepts(endpoint: Endpoint) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(endpoint.host, endpoint.host)  # noqa: S104 - compared, not bound
    try:
        _, writer = await asyncio.open_connection(host, endpoint.port)
    except OSError:
        return False
    writer.close()
    return True
