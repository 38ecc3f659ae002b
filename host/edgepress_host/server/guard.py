"""Who may speak to the REST interface: this machine by its own name, and to change something, with the token.

The Host header is checked against DNS rebinding: a page of elsewhere that a browser here is led to resolve to
127.0.0.1 still names its own host.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import msgspec
from edgepress_protocol.errors import UsageError
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepress_host import durable
from edgepress_host.server.views import ErrorView

HOSTS = frozenset({"127.0.0.1", "localhost"})
READING = frozenset({"GET", "HEAD"})


class Guard:
    """ASGI middleware that answers for what must not pass."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
            if host.lower() not in HOSTS:
                await refusal(421, "this controller answers to 127.0.0.1 and localhost only")(scope, receive, send)
                return
            shown = headers.get("authorization", "").encode()
            if scope["method"] not in READING and not secrets.compare_digest(shown, self._expected):
                await refusal(401, "changing something takes the controller's token (Authorization: Bearer …)")(
                    scope, receive, send
                )
                return
        await _finish(self._app, scope, receive, send)


async def _finish(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let a request that is cut off, because the controller stops, end with one line."""
    begun = False

    async def noting(message: Message) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        await app(scope, receive, noting)
    except asyncio.CancelledError:
        if begun:
            raise
        await refusal(503, "the controller is stopping")(scope, receive, send)


def refusal(status: int, line: str) -> Response:
    """Answer with one line for people."""
    return Response(msgspec.json.encode(ErrorView(line)), status, media_type="application/json")


def token_at(path: Path) -> str:
    """Read the token, or make one on first use.

    Raises:
        UsageError: others than its owner can read it.
    """
    try:
        durable.write_new(path, secrets.token_urlsafe(32).encode(), mode=0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"{path} can be read by others: remove it, and a new one is made") from None
    return path.read_text().strip()
