"""Where the local inference endpoint listens: a Unix socket, or a port of loopback; never for other machines."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

from edgepress_protocol.errors import UsageError

_BACKLOG = 128


def listen(address: str) -> socket.socket:
    """Listen at `127.0.0.1:PORT` (0 for any) or `unix:PATH`.

    Raises:
        UsageError: the address cannot be listened on, or others than this machine could reach it.
    """
    try:
        listening = _listen_unix(Path(address[5:])) if address.startswith("unix:") else _listen_tcp(address)
    except OSError as error:
        raise UsageError(f"--serve {address}: cannot listen there: {error.strerror}; give another address") from error
    # The flag is shared with the children: one that loses the race for a connection must not hang in accept.
    listening.setblocking(False)
    return listening


def _listen_unix(path: Path) -> socket.socket:
    if _is_listened_on(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    unlink(f"unix:{path}")
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
        path.chmod(0o660)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _listen_tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    loopback = host == "localhost" or _is_loopback(host)
    if not loopback or not port.isdecimal():
        raise UsageError(f"--serve {address}: expected 127.0.0.1:PORT or unix:PATH; it serves this machine alone")
    return socket.create_server((host, int(port)), backlog=_BACKLOG, family=_family(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:
            return True  # whoever listens has a full queue
        except OSError:
            return False
    return True


def unlink(address: str) -> None:
    """Remove the socket that an agent before left; nothing else is removed."""
    path = Path(address.removeprefix("unix:"))
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        path.unlink()
