"""One HTTP connection to the active model. Runs in the serving process."""

from __future__ import annotations

import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from time import perf_counter_ns
from typing import Any
from urllib.parse import unquote

import msgspec
from edgepress_protocol.errors import Rejected

from edgepress_agent import runtimes
from edgepress_agent.measure.child import trouble
from edgepress_agent.serving import v2
from edgepress_agent.serving.service import Service

MAX_BODY_BYTES = 32 * 1024 * 1024
ALIAS = "active"
"""A name for whatever model serves, so that a client need not know of deployments."""

_IDLE_S = 60.0
_LENGTH_DIGITS = 20


class Handler(BaseHTTPRequestHandler):
    """One connection of HTTP/1.1."""

    protocol_version = "HTTP/1.1"
    server_version = "edgepress"
    sys_version = ""
    # Head and body in one packet: two would wait for each other's acknowledgement.
    wbufsize = -1

    def __init__(self, connection: socket.socket, service: Service) -> None:
        self.service = service
        connection.settimeout(_IDLE_S)
        # A Unix socket's peer has no address, which is what the base class expects one for.
        super().__init__(connection, ("local", 0), None)  # type: ignore[arg-type]

    def handle_one_request(self) -> None:
        """Mark the connection as idle until a request begins."""
        self.service.idle.add(self.connection)
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Mark it as at work: this is called once a request's first line was read."""
        self.service.idle.discard(self.connection)
        return super().parse_request()

    def handle_expect_100(self) -> bool:
        """Send the go-ahead at once: the client waits for it."""
        go_ahead = super().handle_expect_100()
        self.wfile.flush()
        return go_ahead

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses by itself, other methods and bad heads, in JSON too."""
        self.close_connection = True
        self._send_error(HTTPStatus(code), explain or message or HTTPStatus(code).phrase)

    def do_GET(self) -> None:
        """Health and metadata."""
        match self._path():
            case ["v2"]:
                self._send(HTTPStatus.OK, msgspec.json.encode({"name": "edgepress", "extensions": []}))
            case ["v2", "health", "live"]:
                self._send(HTTPStatus.OK, msgspec.json.encode({"live": True}))
            case ["v2", "health", "ready"]:
                self._send(HTTPStatus.OK, msgspec.json.encode({"ready": True}))
            case ["v2", "models", name, "ready"] if self._known(name):
                self._send(HTTPStatus.OK, msgspec.json.encode({"name": name, "ready": True}))
            case ["v2", "models", name] if self._known(name):
                self._send(HTTPStatus.OK, v2.describe(self.service.bound, self.service.manifest))
            case _:
                self._send_unknown()

    def do_POST(self) -> None:
        """Inference."""
        counts = self.service.counts
        started = perf_counter_ns()
        counts.begin()
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        try:
            status = self._infer()
        finally:
            counts.end(perf_counter_ns() - started, failed=status is not HTTPStatus.OK)

    def _infer(self) -> HTTPStatus:
        body = self._body()
        if body is None:
            return HTTPStatus.BAD_REQUEST
        match self._path():
            case ["v2", "models", name, "infer"] if self._known(name):
                pass
            case _:
                return self._send_unknown()
        try:
            with self.service.turn:
                answer = v2.infer(self.service.bound, self.service.manifest, body)
        except (Rejected, runtimes.Unsupported) as error:
            return self._send_error(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # noqa: BLE001 - a runtime raises anything; the client is told, and the next is served
            return self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, trouble(error).detail)
        return self._send(HTTPStatus.OK, answer)

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self.close_connection = True
            self._send_error(HTTPStatus.LENGTH_REQUIRED, "a request needs a Content-Length")
            return None
        # Python reads no number of thousands of digits.
        if len(length) > _LENGTH_DIGITS or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            line = f"a request may have {MAX_BODY_BYTES} bytes, this one says {length[:_LENGTH_DIGITS]}"
            self._send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
            return None
        return self.rfile.read(int(length))

    def _path(self) -> list[str]:
        return [unquote(part) for part in self.path.partition("?")[0].split("/")[1:]]

    def _known(self, name: str) -> bool:
        return name in {self.service.manifest.variant, ALIAS}

    def _send_unknown(self) -> HTTPStatus:
        serving = self.service.manifest.variant
        return self._send_error(HTTPStatus.NOT_FOUND, f"nothing at {self.path}: the model is {serving!r}, or {ALIAS!r}")

    def _send_error(self, status: HTTPStatus, line: str) -> HTTPStatus:
        return self._send(status, msgspec.json.encode({"error": " ".join(line.split())}))

    def _send(self, status: HTTPStatus, body: bytes) -> HTTPStatus:
        self.close_connection = self.close_connection or self.service.draining.is_set()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return status

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: the agent keeps counts."""
