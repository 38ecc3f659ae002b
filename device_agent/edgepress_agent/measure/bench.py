"""Measures trials, one at a time, while the serving model has no requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from edgepress_protocol.errors import EdgepressError
from edgepress_protocol.messages import Failed, Measured

from edgepress_agent.log import logger
from edgepress_agent.measure.profile import Job, profile

Outcome = Measured | Failed
Phase = Literal["queued", "fetching", "waiting", "measuring"]


class Idle(Protocol):
    """Whoever may be busy with the user's own requests."""

    def busy(self) -> bool:
        """Whether a request is in flight, or was a moment ago."""

    async def wait_idle(self) -> None:
        """Wait until no request is."""


class Bench:
    """A queue of trials; `on_phase` and `on_end` tell where each one stands."""

    def __init__(
        self,
        root: Path,
        lock: Path,
        server: Idle | None,
        on_phase: Callable[[str, Phase, str], None],
        on_end: Callable[[str, Outcome | None], None],
    ) -> None:
        self._root = root
        self._lock = lock
        self._server = server
        self._on_phase = on_phase
        self._on_end = on_end
        self._queue: dict[str, Job] = {}
        self._offered = asyncio.Event()
        self._running: tuple[str, asyncio.Task[Outcome]] | None = None

    def offer(self, job: Job) -> None:
        """Queue a trial whose files are here; one that is queued or running already is left alone."""
        if job.trial.id not in self.trials():
            self._queue[job.trial.id] = job
            self._offered.set()

    def withdraw(self, trial: str) -> None:
        """Forget a trial; its child process is killed if it runs."""
        self._queue.pop(trial, None)
        if self._running is not None and self._running[0] == trial:
            self._running[1].cancel()

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

    async def _measure(self, job: Job) -> Outcome:
        trial = job.trial.id
        if self._server is not None and self._server.busy() and not job.trial.options.when_busy:
            self._on_phase(trial, "waiting", "the serving model has requests")
            await self._server.wait_idle()
        try:
            return await profile(
                job,
                root=self._root,
                lock=self._lock,
                on_phase=lambda phase, detail: self._on_phase(
                    trial, "waiting" if phase == "waiting" else "measuring", detail
                ),
            )
        except (EdgepressError, OSError) as error:
            logger.warning("trial %s…: %s", trial[:12], error)
            return Failed("error", str(error))
