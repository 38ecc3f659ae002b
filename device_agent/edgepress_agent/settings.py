"""What the agent is told at start-up, checked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgepress_protocol.errors import UsageError
from edgepress_protocol.signing import PublicKey
from edgepress_protocol.topics import Topics

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class Broker:
    """Where the MQTT broker is, and how to log in."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


@dataclass(frozen=True)
class Timing:
    """Intervals that tests shorten."""

    keepalive_s: int = 15
    reconnect_max_s: float = 30.0
    stall_s: float = 2.0
    stall_max_s: float = 30.0
    connect_timeout_s: float | None = None


@dataclass(frozen=True)
class Settings:
    """Everything that the agent is told at start-up."""

    broker: Broker
    device_id: str
    fleet: str
    state_dir: Path
    trusted: PublicKey
    root: Path = Path("/")
    serve: str | None = None
    measure_lock: Path | None = None
    timing: Timing = Timing()

    @property
    def topics(self) -> Topics:
        """Topics of the fleet."""
        return Topics(self.fleet)


def parse_broker(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    default_password: str | None = None,
    ca: Path | None = None,
) -> Broker:
    """Read `mqtt://[user[:password]@]host[:port]`, or `mqtts://` for TLS.

    What is given apart wins over the URL, and the URL over `default_password`.

    >>> str(parse_broker("mqtt://pi:secret@broker.lan"))
    'mqtt://broker.lan:1883'

    Raises:
        UsageError: it is no such URL.
    """
    # What stands before the @ is a password: it is never printed.
    shown = f"--broker {url.rpartition('@')[2]!r}: expected mqtt://[user:password@]host:port, or mqtts://…"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(shown) from error
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.path.strip("/") or parts.query:
        raise UsageError(shown)
    if ca is not None and parts.scheme != "mqtts":
        raise UsageError("--ca is for mqtts:// brokers: write --broker mqtts://…, or leave --ca out")
    if ca is not None and not ca.is_file():
        raise UsageError(f"--ca {ca}: no such file; expected the certificate of the broker's authority")
    return Broker(
        host=parts.hostname,
        port=port or _DEFAULT_PORTS[parts.scheme],
        tls=parts.scheme == "mqtts",
        username=username or (unquote(parts.username) if parts.username else None),
        password=password or (unquote(parts.password) if parts.password else default_password),
        ca=ca,
    )


def read_key(path: Path) -> PublicKey:
    """Read the public key whose owner may direct this device.

    Raises:
        UsageError: there is no such file, or it holds no public key.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UsageError(f"--trust {path}: {reason}; copy the host's public key there") from error
    try:
        return PublicKey.from_text(text)
    except UsageError as error:
        raise UsageError(f"--trust {path}: {error}") from error


def check_serve(address: str, state_dir: Path) -> str | None:
    """Read `HOST:PORT`, `unix:PATH`, `off`, or nothing for a socket in the state folder.

    Raises:
        UsageError: it is none of these.
    """
    if address == "off":
        return None
    if not address:
        address = f"unix:{state_dir / 'serve.sock'}"
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if len(os.fsencode(path)) > 107:
            raise UsageError(
                f"--serve: the socket path {path} has more than 107 bytes; give a shorter --serve unix:PATH"
            )
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--serve {address!r}: expected HOST:PORT, unix:PATH or off")
    return address


def lock_state_dir(state_dir: Path) -> int:
    """Make the state folder and keep every other agent out of it; the lock lives as long as the descriptor.

    Raises:
        UsageError: it cannot be written, or another agent runs in it.
    """
    path = state_dir / "lock"
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = _open_lock(path)
    except OSError as error:
        raise UsageError(f"--state-dir {state_dir}: cannot be written ({error.strerror}); choose another") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise UsageError(
            f"--state-dir {state_dir}: another agent (process {holder}) runs in it; give each agent its own"
        ) from None
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, and what is active must be served
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS or not path.exists():
            raise
        # A worn-out card becomes read-only: an agent that was here before goes on with what is active.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
