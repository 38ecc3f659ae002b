"""One loaded model, the connections that ask it, and the count of what they asked. Runs in the serving process."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from edgepress_protocol.histogram import Histogram

from edgepress_agent.measure.pipe import Served
from edgepress_agent.serving.looking import Looker
from edgepress_agent.serving.v2 import Endpoint

MAX_CONNECTIONS = 64
_SLOW_S = 30.0
"""What a process that is to end waits for the rest of a request."""


class Counts:
    """What happened since the last report, shared by the threads of all connections."""

    def __init__(self, looker: Looker) -> None:
        self.changed = threading.Event()
        self.over = False
        self._looker = looker
        self._lock = threading.Lock()
        self._in_flight = 0
        self._errors = 0
        self._latencies_ns: list[int] = []
        self._at_work_since_s: float | None = None

    def begin(self) -> None:
        """Count one request more in flight."""
        with self._lock:
            self._in_flight += 1
        self.tell()

    def end(self, latency_ns: int, *, failed: bool) -> None:
        """Count it as answered."""
        with self._lock:
            self._in_flight -= 1
            self._errors += failed
            self._latencies_ns.append(latency_ns)
        self.tell()

    def finish(self) -> None:
        """Nothing comes after this."""
        self.over = True
        self.changed.set()

    def take(self) -> Served:
        """Return what is new, and start anew."""
        with self._lock:
            latencies, errors = self._latencies_ns, self._errors
            self._latencies_ns, self._errors = [], 0
            in_flight = self._in_flight
        since_s, now_s = self._at_work_since_s, monotonic()
        at_work_s = None if since_s is None else now_s - since_s
        return Served(in_flight, len(latencies), errors, Histogram.of(latencies), self._looker.take(), at_work_s)

    def at_work(self, *, is_so: bool) -> None:
        """Note that the model computes an answer from now on, or has computed it."""
        self._at_work_since_s = monotonic() if is_so else None
        self.tell()

    def tell(self) -> None:
        """Have what changed reported soon."""
        # Asking first is ten times cheaper than setting it again.
        if not self.changed.is_set():
            self.changed.set()


class Service:
    """One loaded model, and what its connections share.

    `give` is a socket by which a connection goes to the next serving process with all that it has not read yet.
    """

    def __init__(
        self, endpoint: Endpoint, give: socket.socket, answer: Callable[[socket.socket, Service], object]
    ) -> None:
        self.endpoint = endpoint
        self.looker = Looker(endpoint.bound.inputs)
        self.counts = Counts(self.looker)
        # Interpreters are not made for several threads, and a board has no cores to spare.
        self._turn = threading.Lock()
        self._settled = threading.Condition()
        self._owed = 0
        self.draining = False
        self._give = give
        self._handle = answer
        self._drained, self._rope = os.pipe()
        self._connections: set[threading.Thread] = set()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until nobody else has the model, and have it."""
        with self._turn:
            self.counts.at_work(is_so=True)
            try:
                yield
            finally:
                self.counts.at_work(is_so=False)

    def connect(self, connection: socket.socket) -> bool:
        """Answer one connection in a thread of its own; False where there are too many already."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        thread = threading.Thread(target=self._answer, args=(connection,), daemon=True)
        self._connections.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no room for its stack
            self._connections.discard(thread)
            return False
        return True

    def bell(self, connection: socket.socket) -> select.poll:
        """Return what wakes up when the connection has something to read, or when this process is to end."""
        bell = select.poll()
        bell.register(connection, select.POLLIN)
        bell.register(self._drained, select.POLLIN)
        return bell

    def hand_over(self, connection: socket.socket) -> None:
        """Give a connection, between two requests, to the process that serves next."""
        socket.send_fds(self._give, [b"c"], [connection.fileno()])

    @contextmanager
    def owing(self) -> Iterator[None]:
        """Owe an answer: a request is here in full."""
        with self._settled:
            self._owed += 1
        try:
            yield
        finally:
            with self._settled:
                self._owed -= 1
                self._settled.notify_all()

    def drain(self, seconds: float) -> None:
        """Wait until every connection has its answer, and has been handed over.

        A request that is here in full is answered, if that takes no more than so many seconds; one that comes slowly
        has a part of them.
        """
        self.draining = True
        os.close(self._rope)
        begun_s = monotonic()
        for thread in list(self._connections):
            thread.join(max(0.0, begun_s + min(seconds, _SLOW_S) - monotonic()))
        with self._settled:
            self._settled.wait_for(lambda: not self._owed, max(0.0, begun_s + seconds - monotonic()))

    def _answer(self, connection: socket.socket) -> None:
        try:
            self._handle(connection, self)
        except OSError:
            pass  # the client has gone, which is its right
        finally:
            # First, so that a client which sees its connection close may open another at once.
            self._connections.discard(threading.current_thread())
            connection.close()
