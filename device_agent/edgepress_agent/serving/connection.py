"""One HTTP connection to the active model: requests in, answers out. Runs in the serving process."""

from __future__ import annotations

import socket
from http import HTTPStatus
from importlib.metadata import version
from time import perf_counter_ns
from typing import TYPE_CHECKING

import msgspec
from edgepress_protocol.errors import Rejected

from edgepress_agent import runtimes
from edgepress_agent.measure.child import trouble
from edgepress_agent.serving import head
from edgepress_agent.serving.head import Head, Refused
from edgepress_agent.serving.service import Service

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

ALIAS = "active"
"""A name for whatever model serves, so that a client need not know of deployments."""

_STALLED_S = 60.0
_PIECE_BYTES = 16 * 1024
_JOINED_BYTES = 64 * 1024
_ALIGNMENT = 16


class Connection:
    """One connection of HTTP/1.1, which may stay open for as long as its client likes.

    When this process is to end, the connection goes to the next one between two requests; its client sees nothing.
    """

    def __init__(self, connection: socket.socket, service: Service) -> None:
        self._socket = connection
        self._service = service
        self._bell = service.bell(connection)
        self._unread = b""
        connection.settimeout(_STALLED_S)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def answer_all(self) -> None:
        """Answer requests until the client has gone, or the connection was handed over.

        Raises:
            OSError: the client went in the midst of a request.
        """
        while True:
            try:
                data = self._read_head()
                if data is None:
                    return
                asked = head.parse_head(data)
            except Refused as refused:
                # Where the next request would begin is not known.
                self._send_error(refused.status, str(refused), keep=False)
                return
            self._answer(asked)
            if not asked.keep:
                return

    def _read_head(self) -> bytes | None:
        """Read up to the empty line; None where no request will come here any more."""
        data, looked_at = self._unread, 0
        while (end := data.find(b"\r\n\r\n", max(0, looked_at - 3))) < 0:
            if len(data) > head.MAX_BYTES:
                raise head.too_long()
            if b"\n\n" in data:
                raise Refused(HTTPStatus.BAD_REQUEST, "a line of the request's head does not end with CR LF")
            if not data and not self._is_asked():
                return None
            looked_at = len(data)
            piece = self._socket.recv(_PIECE_BYTES)
            if not piece:
                return None
            data += piece
        self._unread = data[end + 4 :]
        return data[:end]

    def _is_asked(self) -> bool:
        """Wait for the first byte of a request; False where the connection was handed over instead."""
        self._bell.poll()
        if not self._service.draining:
            return True
        # What came meanwhile is in the socket still, where the next process reads it.
        self._service.hand_over(self._socket)
        return False

    def _read_body(self, asked: Head) -> memoryview:
        """Read the body, placed so that binary data behind its JSON is aligned for any type."""
        padding = -(asked.json_bytes or 0) % _ALIGNMENT
        body = memoryview(bytearray(padding + asked.body_bytes))[padding:]
        have = min(len(self._unread), asked.body_bytes)
        body[:have], self._unread = self._unread[:have], self._unread[have:]
        if asked.waits and have < asked.body_bytes:
            self._socket.sendall(head.GO_AHEAD)
        while have < asked.body_bytes:
            count = self._socket.recv_into(body[have:])
            if not count:
                raise ConnectionAbortedError("the client went in the midst of a request")
            have += count
        return body

    def _answer(self, asked: Head) -> None:
        if asked.method == "POST":
            self._infer(asked)
            return
        self._read_body(asked)
        status, answer = self._look_up(asked.path)
        described = head.answer_head(status, len(answer), keep=asked.keep)
        self._socket.sendall(described if asked.method == "HEAD" else described + answer)

    def _look_up(self, path: tuple[str, ...]) -> tuple[HTTPStatus, bytes]:
        endpoint = self._service.endpoint
        match path:
            case ("v2",):
                about = {"name": "edgepress", "version": version("edgepress"), "extensions": ["binary_tensor_data"]}
                return HTTPStatus.OK, msgspec.json.encode(about)
            case ("v2", "health", "live"):
                return HTTPStatus.OK, msgspec.json.encode({"live": True})
            case ("v2", "health", "ready"):
                return HTTPStatus.OK, msgspec.json.encode({"ready": True})
            case ("v2", "models", name, *rest, "ready") if self._is_served(name, rest):
                return HTTPStatus.OK, msgspec.json.encode({"name": name, "ready": True})
            case ("v2", "models", name, *rest) if self._is_served(name, rest):
                return HTTPStatus.OK, endpoint.describe()
            case _:
                return HTTPStatus.NOT_FOUND, _error(self._unknown(path))

    def _infer(self, asked: Head) -> None:
        counts = self._service.counts
        counts.begin()
        started_ns, failed, arrays = perf_counter_ns(), True, None
        try:
            body = self._read_body(asked)
            started_ns = perf_counter_ns()
            with self._service.owing():
                arrays = self._infer_from(asked, body)
            failed = arrays is None
        finally:
            counts.end(perf_counter_ns() - started_ns, failed=failed)
        if arrays is not None and self._service.looker.look(arrays):
            counts.tell()

    def _infer_from(self, asked: Head, body: memoryview) -> list[Array] | None:
        """Answer a request for an inference; returns what came in, or None where the answer is an error."""
        if not self._is_infer(asked.path):
            self._send_error(HTTPStatus.NOT_FOUND, self._unknown(asked.path), keep=asked.keep)
            return None
        split = len(body) if asked.json_bytes is None else asked.json_bytes
        try:
            with self._service.turn():
                inferred = self._service.endpoint.infer(body[:split], None if split == len(body) else body[split:])
        except (Rejected, runtimes.Unsupported) as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error), keep=asked.keep)
            return None
        except Exception as error:  # noqa: BLE001 - a runtime raises anything; the client is told, and the next is served
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, trouble(error).detail, keep=asked.keep)
            return None
        parts: list[bytes | memoryview] = [inferred.json, *(inferred.binary or [])]
        size = sum(len(part) for part in parts)
        json_bytes = None if inferred.binary is None else len(inferred.json)
        described = head.answer_head(HTTPStatus.OK, size, json_bytes=json_bytes, keep=asked.keep)
        if size <= _JOINED_BYTES:
            self._socket.sendall(b"".join([described, *parts]))
        else:
            for part in (described, *parts):
                self._socket.sendall(part)
        return inferred.inputs

    def _is_infer(self, path: tuple[str, ...]) -> bool:
        match path:
            case ("v2", "models", name, *rest, "infer"):
                return self._is_served(name, rest)
        return False

    def _is_served(self, name: str, rest: list[str]) -> bool:
        """Whether name, and version where one is given, are those of the model that serves."""
        endpoint = self._service.endpoint
        return name in {endpoint.variant, ALIAS} and rest in ([], ["versions", endpoint.version])

    def _unknown(self, path: tuple[str, ...]) -> str:
        endpoint = self._service.endpoint
        there = f"the model is {endpoint.variant!r}, or {ALIAS!r}, in version {endpoint.version[:12]}…"
        return f"nothing at /{'/'.join(path)[:200]}: {there}"

    def _send_error(self, status: HTTPStatus, line: str, *, keep: bool) -> None:
        body = _error(line)
        self._socket.sendall(head.answer_head(status, len(body), keep=keep) + body)


def refuse(connection: socket.socket, line: str) -> None:
    """Tell a client in one line why it is not heard, and close."""
    body = _error(line)
    with connection:
        connection.send(head.answer_head(HTTPStatus.SERVICE_UNAVAILABLE, len(body), keep=False) + body)


def answer(connection: socket.socket, service: Service) -> None:
    """Answer one connection for as long as it is here."""
    Connection(connection, service).answer_all()


def _error(line: str) -> bytes:
    return msgspec.json.encode({"error": " ".join(line.split())})
