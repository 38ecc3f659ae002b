"""The local inference endpoint: a socket that stays, and child processes that come and go behind it.

The agent listens and never reads a request; the child that holds the active model accepts. A swap starts the
next child, waits until it is ready, and only then lets the old one finish, which hands its connections on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import Manifest
from edgepress_protocol.messages import Failed
from edgepress_protocol.served import InputStats

from edgepress_agent import runtimes
from edgepress_agent._compat import timeout
from edgepress_agent.measure.needs import unmet
from edgepress_agent.measure.pipe import Drain, Ready, Serve, Served
from edgepress_agent.measure.worker import Ended, Worker
from edgepress_agent.serving.listening import listen, unlink

QUIET_S = 2.0
"""Requests this recent mean that another is likely: the board is not idle."""

ANSWER_S = 300.0
"""A model that computes one answer for so long hangs, and its process is started again.

A client's largest request, 32 MiB of samples, is to have its time, too. So does one from which nothing is heard for so
long: a runtime may hang with the interpreter's lock in its hands.
"""

_MOST_RETIRING = 2
"""Models before the last that may still owe answers: a board has no memory for more."""

_RETIRE_S = 5.0
"""What a process has to end in, once its last answer is given."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(frozen=True)
class ServeStats:
    """Requests since the agent started: answered, of these in error, and those in flight.

    `latency` and `inputs` are of the model that serves now: its answers' times, and the values that it was asked with.
    """

    requests: int = 0
    errors: int = 0
    in_flight: int = 0
    latency: Histogram = field(default_factory=Histogram)
    inputs: tuple[InputStats, ...] = ()


class Server:
    """Serves at most one model at `address`: `127.0.0.1:PORT` (0 for any) or `unix:PATH`.

    `on_trouble` is told in one line when a process that serves has died, or answers no more within `answer_s` seconds,
    and with an empty one when the next is ready.
    """

    def __init__(self, address: str, work_dir: Path, *, answer_s: float = ANSWER_S) -> None:
        self._wanted_address = address
        self._work_dir = work_dir
        self._answer_s = answer_s
        self._current: _Serving | None = None
        self._retiring: dict[asyncio.Task[None], None] = {}
        self._all: set[_Serving] = set()
        self._requests = 0
        self._errors = 0
        self._last_activity_s = -QUIET_S
        self._changed = asyncio.Event()
        self.on_trouble: Callable[[str], None] = lambda _: None

    async def start(self) -> None:
        """Listen. Connections wait until a model is there.

        Raises:
            UsageError: the address cannot be listened on, or others than this machine could reach it.
        """
        self._socket = listen(self._wanted_address)
        # A message is one connection. The end that takes must not block the child that another was quicker than.
        self._give, self._take = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._take.setblocking(False)
        self.address = self._wanted_address
        if self._socket.family != socket.AF_UNIX:
            self.address = "{}:{}".format(*self._socket.getsockname()[:2])

    async def swap(self, manifest: Manifest, model: Path) -> None:
        """Serve another model from now on; no request is lost. On an error, what served goes on serving.

        Raises:
            Unavailable: the model does not load.
        """
        reason = unmet(manifest)
        if reason:
            raise Unavailable(reason)
        next_one = _Serving(self._asked(manifest, model), asyncio.get_running_loop().create_future())
        next_one.task = asyncio.create_task(self._keep(next_one), name=f"serve {manifest.variant}")
        self._all.add(next_one)
        try:
            await asyncio.wait({next_one.ready, next_one.task}, return_when=asyncio.FIRST_COMPLETED)
            # A task that ends before its model is ready has met a bug, which is raised here.
            await (next_one.ready if next_one.ready.done() else next_one.task)
        except BaseException:
            await self._end(next_one)
            raise
        old, self._current = self._current, next_one
        if old is not None:
            retiring = asyncio.create_task(self._retire(old), name="retire the old model")
            self._retiring[retiring] = None
            retiring.add_done_callback(lambda done: self._retiring.pop(done, None))
            for oldest in list(self._retiring)[:-_MOST_RETIRING]:
                oldest.cancel()

    async def stop(self) -> None:
        """Kill the children and stop listening."""
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for serving in list(self._all):
            await self._end(serving)
        self._current = None
        for each in (self._socket, self._give, self._take):
            each.close()
        if self._wanted_address.startswith("unix:"):
            unlink(self._wanted_address)

    def busy(self) -> bool:
        """Whether a request is in flight, or was within the last two seconds."""
        return self._in_flight() > 0 or monotonic() - self._last_activity_s < QUIET_S

    async def wait_idle(self) -> None:
        """Wait until `busy` is False."""
        while self.busy():
            self._changed.clear()
            quiet_in_s = None if self._in_flight() else QUIET_S - (monotonic() - self._last_activity_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), quiet_in_s)

    def stats(self) -> ServeStats:
        """Return the counts of all models that served, and what is known of the one that serves now."""
        now = self._current
        latency, inputs = (Histogram(), ()) if now is None else (now.latency, tuple(now.inputs.values()))
        return ServeStats(self._requests, self._errors, self._in_flight(), latency, inputs)

    def _asked(self, manifest: Manifest, model: Path) -> Serve:
        runtime, _ = runtimes.get(manifest.format)
        return Serve(manifest, str(model.absolute()), runtime.name, self._answer_s)

    def _in_flight(self) -> int:
        return sum(serving.in_flight for serving in self._all)

    async def _keep(self, serving: _Serving) -> None:
        """Keep one model served: a child that dies is started again, more and more slowly."""
        pause_s = _FIRST_PAUSE_S
        while True:
            started_s = monotonic()
            try:
                await self._run(serving)
            except (Ended, OSError) as error:
                if not serving.ready.done():
                    serving.ready.set_exception(Unavailable(f"{serving.asked.manifest.variant} does not load: {error}"))
                    return
                if serving.draining:
                    return
                self.on_trouble(f"the process that serves {serving.asked.manifest.variant} is started again: {error}")
            finally:
                serving.child = None
                serving.in_flight, serving.at_work_since_s = 0, None
                self._changed.set()
            pause_s = _FIRST_PAUSE_S if monotonic() - started_s > _LONGEST_PAUSE_S else pause_s
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run(self, serving: _Serving) -> None:
        handed_in = [each.fileno() for each in (self._socket, self._give, self._take)]
        async with Worker(self._work_dir, "edgepress_agent.serving.answering", handed_in) as child:
            await child.ask(serving.asked, Ready)
            serving.child = child
            if serving.ready.done():
                self.on_trouble("")
            else:
                serving.ready.set_result(None)
            while True:
                self._count(serving, await self._news(serving, child))

    async def _news(self, serving: _Serving, child: Worker) -> Served:
        """Wait for what the child tells next. Raises Ended, also where the model hangs."""
        since_s = monotonic() if serving.at_work_since_s is None else serving.at_work_since_s
        try:
            async with timeout(since_s + self._answer_s - monotonic()):
                return await child.next(Served)
        except TimeoutError as error:
            raise Ended(Failed("timeout", f"no answer within {self._answer_s:g} s")) from error

    def _count(self, serving: _Serving, news: Served) -> None:
        self._requests += news.requests
        self._errors += news.errors
        serving.latency = serving.latency.merge(news.latency)
        for seen in news.inputs:
            before = serving.inputs.get(seen.name)
            serving.inputs[seen.name] = seen if before is None else before.merge(seen)
        if news.requests or news.in_flight or serving.in_flight:
            self._last_activity_s = monotonic()
        serving.at_work_since_s = None if news.at_work_s is None else monotonic() - news.at_work_s
        serving.in_flight = news.in_flight
        self._changed.set()

    async def _retire(self, serving: _Serving) -> None:
        serving.draining = True
        assert serving.task is not None
        try:
            if serving.child is not None:
                with contextlib.suppress(Ended):
                    await serving.child.tell(Drain())
                await asyncio.wait({serving.task}, timeout=self._answer_s + _RETIRE_S)
        finally:
            await self._end(serving)

    async def _end(self, serving: _Serving) -> None:
        assert serving.task is not None
        serving.task.cancel()
        await asyncio.gather(serving.task, return_exceptions=True)
        self._all.discard(serving)


@dataclass(eq=False)
class _Serving:
    """One model behind the socket."""

    asked: Serve
    ready: asyncio.Future[None]
    task: asyncio.Task[None] | None = None
    child: Worker | None = None
    in_flight: int = 0
    at_work_since_s: float | None = None
    draining: bool = False
    latency: Histogram = field(default_factory=Histogram)
    inputs: dict[str, InputStats] = field(default_factory=dict)
