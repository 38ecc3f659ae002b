"""Measures trials, one at a time, while the serving model has no requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
from edgepress_protocol.errors import EdgepressError
from edgepress_protocol.manifest import Blob
from edgepress_protocol.measurement import Quiet
from edgepress_protocol.messages import Failed, Measured

from edgepress_agent.log import logger
from edgepress_agent.serving.serve import ServeStats
from edgepress_agent.wants import blobs_of_trial

if TYPE_CHECKING:
    from edgepress_agent.measure.job import Job

Outcome = Measured | Failed
Phase = Literal["queued", "fetching", "waiting", "measuring"]


class Idle(Protocol):
    """Whoever may be busy with the user's own requests."""

    def busy(self) -> bool:
        """Whether a request is in flight, or was a moment ago."""

    async def wait_idle(self) -> None:
        """Wait until no request is."""

    def stats(self) -> ServeStats:
        """Return the counts of all requests so far."""


class Bench:
    """A queue of trials; `on_phase` and `on_end` tell where each one stands.

    `verify` holds a blob against its digest: a file may rot between its transfer and its trial. A trial whose files
    are no longer right ends without an outcome, as one that was withdrawn does, and can be offered again.
    """

    def __init__(
        self,
        root: Path,
        lock: Path,
        server: Idle | None,
        verify: Callable[[Blob], bool],
        on_phase: Callable[[str, Phase, str], None],
        on_end: Callable[[str, Outcome | None], None],
    ) -> None:
        self._root = root
        self._lock = lock
        self._server = server
        self._verify = verify
        self._on_phase = on_phase
        self._on_end = on_end
        self._queue: dict[str, Job] = {}
        self._offered = asyncio.Event()
        self._running: tuple[str, asyncio.Task[Outcome | None]] | None = None

    def offer(self, job: Job) -> None:
        """Queue a trial whose files are here; one that is queued or running already is left alone."""
        if not self.has(job.trial.id):
            self._queue[job.trial.id] = job
            self._offered.set()

    def withdraw(self, trial: str) -> None:
        """Forget a trial; its child process is killed if it runs."""
        self._queue.pop(trial, None)
        if self._running is not None and self._running[0] == trial:
            self._running[1].cancel()

    def has(self, trial: str) -> bool:
        """Whether a trial is queued or running."""
        return trial in self._queue or (self._running is not None and self._running[0] == trial)

    def trials(self) -> frozenset[str]:
        """Trials that are queued or running."""
        running = {self._running[0]} if self._running else set()
        return frozenset(self._queue) | running

    async def run(self) -> None:
        """Measure whatever is offered, for ever."""
        while True:
            while not self._queue:
                self._offered.clear()
                await self._offered.wait()
            job = self._queue.pop(next(iter(self._queue)))
            task = asyncio.create_task(self._measure(job), name=f"trial {job.trial.id}")
            self._running = (job.trial.id, task)
            try:
                await asyncio.wait([task])
            finally:
                self._running = None
                if not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            self._on_end(job.trial.id, None if task.cancelled() else task.result())

    async def _measure(self, job: Job) -> Outcome | None:
        try:
            for blob in blobs_of_trial(job.trial, job.manifest):
                if not await asyncio.to_thread(self._verify, blob):
                    return None
            outcome, requests = await self._alone(job)
            if requests and isinstance(outcome, Measured) and not job.trial.options.when_busy:
                outcome, requests = await self._alone(job)
            return _disturbed(outcome) if requests else outcome
        except (EdgepressError, OSError) as error:
            logger.warning("trial %s…: %s", job.trial.id[:12], error)
            return Failed("error", str(error))

    async def _alone(self, job: Job) -> tuple[Outcome, int]:
        """Measure while the serving model has no requests; returns how many came all the same."""
        trial = job.trial.id
        if self._server is not None and self._server.busy() and not job.trial.options.when_busy:
            self._on_phase(trial, "waiting", "the serving model has requests")
            await self._server.wait_idle()
        # Late: a board that measures nothing need not hold it.
        from edgepress_agent.measure.profile import profile

        before = self._asked()
        outcome = await profile(
            job,
            root=self._root,
            lock=self._lock,
            on_phase=lambda phase, detail: self._on_phase(
                trial, "waiting" if phase == "waiting" else "measuring", detail
            ),
        )
        return outcome, self._asked() - before

    def _asked(self) -> int:
        """Count the requests that the serving model has had, those included that it has not answered yet."""
        if self._server is None:
            return 0
        stats = self._server.stats()
        return stats.requests + stats.in_flight


def _disturbed(outcome: Outcome) -> Outcome:
    if isinstance(outcome, Failed):
        return outcome
    measured = outcome.measurement
    line = "the serving model had requests while this was measured"
    seen = measured.quiet or Quiet()
    marked = msgspec.structs.replace(seen, disturbed=(*seen.disturbed, line))
    return Measured(msgspec.structs.replace(measured, quiet=marked, notes=(*measured.notes, line)))
