"""The serving process: `python -m edgepress_agent.answering FD PARENT_PID LISTENING_FD`.

It loads one model, answers HTTP on a socket that the agent listens on, and tells the agent how it goes.
While one such process takes over from another, both accept on the same socket, so that no request is lost.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from time import monotonic, perf_counter_ns, sleep
from typing import Any
from urllib.parse import unquote

import msgspec
from edgepress_protocol.errors import Rejected
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import Manifest

from edgepress_agent import process, runtimes, tensors, v2
from edgepress_agent.child import trouble
from edgepress_agent.pipe import Question, Ready, Serve, Served, pack, receive

MAX_BODY_BYTES = 32 * 1024 * 1024
ALIAS = "active"
"""A name for whatever model serves, so that a client need not know of deployments."""

_IDLE_S = 60.0
_DRAIN_IDLE_S = 2.0
"""A client that keeps its connection has so long to send one more request, whose answer tells it to come anew."""
_DRAIN_S = 30.0
_REPORT_EVERY_S = 0.1


class Counts:
    """What happened since the last report, shared by the threads of all connections."""

    def __init__(self) -> None:
        self.changed = threading.Event()
        self.over = False
        self._lock = threading.Lock()
        self._in_flight = 0
        self._errors = 0
        self._latencies_ns: list[int] = []

    def begin(self) -> None:
        """Count one request more in flight."""
        with self._lock:
            self._in_flight += 1
        self.changed.set()

    def end(self, latency_ns: int, *, failed: bool) -> None:
        """Count it as answered."""
        with self._lock:
            self._in_flight -= 1
            self._errors += failed
            self._latencies_ns.append(latency_ns)
        self.changed.set()

    def finish(self) -> None:
        """Nothing comes after this."""
        self.over = True
        self.changed.set()

    def take(self) -> Served:
        """Return what is new, and start anew."""
        with self._lock:
            self.changed.clear()
            latencies, errors = self._latencies_ns, self._errors
            self._latencies_ns, self._errors = [], 0
            return Served(self._in_flight, len(latencies), errors, Histogram.of(latencies))


class Service:
    """One loaded model, and what its connections share."""

    def __init__(self, manifest: Manifest, bound: tensors.Bound) -> None:
        self.manifest = manifest
        self.bound = bound
        self.counts = Counts()
        self.draining = threading.Event()
        # Interpreters are not made for several threads, and a board has no cores to spare.
        self.turn = threading.Lock()
        self.idle: set[socket.socket] = set()
        self._connections: dict[threading.Thread, socket.socket] = {}

    def connect(self, connection: socket.socket) -> None:
        """Answer one connection in a thread of its own."""
        thread = threading.Thread(target=self._answer, args=(connection,), daemon=True)
        self._connections[thread] = connection
        thread.start()

    def drain(self) -> None:
        """Wait for the connections: each ends with its next answer, or when it has been idle for a moment."""
        self.draining.set()
        self._join(_DRAIN_IDLE_S)
        for connection in list(self.idle):
            with suppress(OSError):  # closed by its client meanwhile
                connection.shutdown(socket.SHUT_RD)
        self._join(_DRAIN_S)

    def _join(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        for thread in list(self._connections):
            thread.join(max(0.0, deadline - monotonic()))

    def _answer(self, connection: socket.socket) -> None:
        try:
            Handler(connection, self)
        except OSError:
            pass  # the client has gone, which is its right
        finally:
            connection.close()
            self.idle.discard(connection)
            self._connections.pop(threading.current_thread(), None)


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
        if int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            line = f"a request may have {MAX_BODY_BYTES} bytes, this one says {length}"
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
        self.wfile.write(body)
        return status

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: the agent keeps counts."""


def main() -> None:
    """Load, serve until told to drain, drain."""
    process.die_with(int(sys.argv[2]))
    process.be_first_to_go()
    questions = msgspec.msgpack.Decoder(Question)
    pipe = socket.socket(fileno=int(sys.argv[1]))
    listening = socket.socket(fileno=int(sys.argv[3]))
    first = receive(pipe)
    if first is None:
        return
    asked = questions.decode(first)
    assert isinstance(asked, Serve), "the first message is Serve"
    try:
        service = Service(asked.manifest, load(asked))
    except BaseException as error:  # noqa: BLE001 - a runtime raises anything; all of it is an answer
        pipe.sendall(pack(trouble(error)))
        return
    pipe.sendall(pack(Ready()))
    reporting = threading.Thread(target=report, args=(service.counts, pipe), daemon=True)
    reporting.start()
    accept(service, listening, pipe)
    service.drain()
    service.counts.finish()
    reporting.join()


def load(asked: Serve) -> tensors.Bound:
    """Load the model and run it once, so that the first request does not pay for it."""
    _, module = runtimes.get(asked.manifest.format)
    module.prepare()
    bound = tensors.bind(module.load(Path(asked.model), 1), asked.manifest, 1)
    bound.run(tensors.random_inputs(bound))
    return bound


def accept(service: Service, listening: socket.socket, pipe: socket.socket) -> None:
    """Accept until the agent says anything, or ends."""
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if pipe in ready:
                return
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                continue  # the other process was quicker
            connection.setblocking(True)
            service.connect(connection)


def report(counts: Counts, pipe: socket.socket) -> None:
    """Tell the agent what changed, at once and then at most ten times a second."""
    while counts.changed.wait():
        last = counts.over
        pipe.sendall(pack(counts.take()))
        if last:
            return
        sleep(_REPORT_EVERY_S)


if __name__ == "__main__":
    main()
