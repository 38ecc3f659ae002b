"""The serving process: `python -m edgepress_agent.serving.answering FD PARENT_PID LISTENING_FD`.

It loads one model, answers HTTP on a socket that the agent listens on, and tells the agent how it goes.
While one such process takes over from another, both accept on the same socket, so that no request is lost.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import msgspec
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import Manifest

from edgepress_agent import runtimes
from edgepress_agent.measure import process, tensors
from edgepress_agent.measure.child import trouble
from edgepress_agent.measure.pipe import Question, Ready, Serve, Served, pack, receive
from edgepress_agent.serving.handler import Handler

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
