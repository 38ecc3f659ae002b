"""One loaded model, the connections that ask it, and the count of what they asked. Runs in the serving process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import Manifest

from edgepress_agent.measure import tensors
from edgepress_agent.measure.pipe import Served

_DRAIN_IDLE_S = 2.0
"""A client that keeps its connection has so long to send one more request, whose answer tells it to come anew."""
_DRAIN_S = 30.0


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

    def __init__(
        self, manifest: Manifest, bound: tensors.Bound, answer: Callable[[socket.socket, Service], object]
    ) -> None:
        self.manifest = manifest
        self.bound = bound
        self._handle = answer
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
            self._handle(connection, self)
        except OSError:
            pass  # the client has gone, which is its right
        finally:
            connection.close()
            self.idle.discard(connection)
            self._connections.pop(threading.current_thread(), None)
