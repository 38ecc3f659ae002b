"""Carries out the table of `deployment`: fetch, check, switch, serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

from edgepress_protocol.errors import EdgepressError, Rejected, Unavailable
from edgepress_protocol.manifest import Blob, Manifest
from edgepress_protocol.messages import Active, Deployment, DeploymentStatus, Signed

from edgepress_agent import deployment as life
from edgepress_agent._compat import timeout
from edgepress_agent.deployment import Deploying, Event
from edgepress_agent.happenings import Happening, Noted
from edgepress_agent.log import logger
from edgepress_agent.measure.check import golden
from edgepress_agent.measure.needs import unmet
from edgepress_agent.serving.serve import Server
from edgepress_agent.state.disk import Disk
from edgepress_agent.state.slots import Pair
from edgepress_agent.wants import Wanted, blobs_of

CHECK_TIMEOUT_S = 120.0

Start = Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]


@dataclass(frozen=True)
class Candidate:
    """The model that is to become active, and the signed manifest that its slot keeps."""

    manifest: Manifest
    signed: Signed


class Activation:
    """The wanted deployment on its way to the current slot.

    `start` runs a job beside the main task; its end is posted as an event, which comes back to `happened`.
    """

    def __init__(
        self,
        disk: Disk,
        server: Server | None,
        start: Start,
        post: Callable[[Happening], None],
    ) -> None:
        self._disk = disk
        self._server = server
        self._start = start
        self._post = post
        self._now = Deploying()
        self._wanted: Wanted | None = None
        self._model: Candidate | None = None
        self._before = Pair()
        self._job: asyncio.Task[None] | None = None
        self._swapping = asyncio.Lock()
        if server is not None:
            server.on_trouble = lambda line: post(Noted("serving", line))

    @property
    def status(self) -> DeploymentStatus | None:
        """As the host is told."""
        return self._now.status()

    @property
    def healthy(self) -> bool:
        """Whether what the host wants is active."""
        return self._now.phase == "active"

    @property
    def busy(self) -> bool:
        """Whether a check or a start is under way."""
        return self._now.phase in {"checking", "returning", "starting"}

    def resume(self) -> None:
        """Serve again, after a restart, what is in the current slot."""
        current = self._disk.slots.pair.current
        if current is not None:
            self._start(self._serve_again(current))

    def want(self, wanted: Wanted) -> None:
        """Take up the host's wish."""
        self._wanted = wanted
        facts = self._disk.memory.facts
        wish = wanted.want.deployment
        failed_before = facts.failed_reason if wish and wish.id == facts.failed_deployment else None
        before = self._now
        self._now, action = life.want(before, wish, self._disk.slots.pair, failed_before)
        if self._now.wanted != before.wanted and self._job is not None:
            self._job.cancel()
        self._act(action)

    def blobs(self) -> tuple[Blob, ...]:
        """Blobs that the deployment waits for, or is being checked with."""
        if self._now.phase not in {"fetching", "checking"} or self._model is None:
            return ()
        return blobs_of(self._model.manifest)

    def look(self) -> None:
        """Go on if every blob is here."""
        if self._now.phase == "fetching" and all(self._disk.store.holds(blob) for blob in self.blobs()):
            self._tell("fetched")

    def cannot_fetch(self, reason: str) -> bool:
        """Give the deployment up, its blobs cannot be had; return whether it was waiting for them."""
        if self._now.phase != "fetching":
            return False
        self._tell("unfetchable", reason)
        return True

    def happened(self, event: Event) -> None:
        """Take an event through the table, and do what it says."""
        before = self._now
        self._now, action = life.step(before, event)
        if self._now.phase == "failed" and before.phase != "failed":
            self._disk.memory.failed(event.deployment, self._now.reason)
            logger.error("deployment %s… failed: %s", event.deployment[:12], self._now.reason)
        self._act(action)
        if before.phase == "starting" and self._now.phase != "starting" and self._wanted is not None:
            # A wish that came while the model was starting has waited for this.
            self.want(self._wanted)

    def _act(self, action: life.Action) -> None:
        match action:
            case "fetch":
                self._begin()
            case "check":
                self._run(self._check(), otherwise="refused")
            case "verify":
                self._run(self._verify(), otherwise="refused")
            case "switch":
                self._switch()
            case "relabel":
                self._try(lambda: self._disk.slots.switch(self._occupant()))
            case "serve":
                self._run(self._serve(), otherwise="unserved")
            case "settle":
                self._disk.slots.settle()
            case "undo":
                self._try(lambda: self._disk.slots.put_back(self._before))
                self._disk.slots.settle()
            case "nothing":
                pass

    def _begin(self) -> None:
        name = self._deployment().manifest
        self._model = None
        try:
            if self._wanted is None:
                raise AssertionError("no want was taken up")
            manifest = self._wanted.manifest(name)
            self._model = Candidate(manifest, self._wanted.signed[name])
            reason = unmet(manifest)
        except Rejected as error:
            reason = str(error)
        if reason:
            self._tell("unfetchable", reason)

    async def _check(self) -> Event:
        manifest = self._candidate().manifest
        event = self._events()
        for blob in blobs_of(manifest):
            # It may have rotted since it was fetched.
            if not await asyncio.to_thread(self._disk.store.verify, blob):
                return event("damaged")
        vectors = self._disk.store.path(manifest.golden.blob.sha256) if manifest.golden else None
        model = self._disk.store.path(manifest.model.sha256)
        failed = await golden(manifest, model, vectors, timeout_s=CHECK_TIMEOUT_S, work_dir=self._disk.work)
        return event("refused", f"{failed.kind}: {failed.detail}") if failed else event("passed")

    async def _verify(self) -> Event:
        event = self._events()
        await asyncio.to_thread(self._disk.slots.open, self._deployment().manifest)
        return event("passed")

    def _switch(self) -> None:
        slots = self._disk.slots
        self._before = slots.pair
        try:
            if self._now.phase == "checking":
                slots.prepare(self._candidate().signed, self._disk.store.path)
            slots.switch(self._occupant())
        except EdgepressError as error:
            self._tell("unswitchable", str(error))
            return
        logger.info("active: %s", self._occupant().variant)
        self._tell("switched")

    async def _serve(self) -> Event:
        event = self._events()
        await self._swap_to(self._deployment().manifest)
        self._post(Noted("serving", ""))
        return event("served")

    async def _swap_to(self, manifest: str) -> None:
        """Serve a slot.

        Raises:
            EdgepressError: it does not load, or not in time.
        """
        if self._server is None:
            return
        # One at a time, or what is served last might be what was wanted first.
        async with self._swapping:
            opened = await asyncio.to_thread(self._disk.slots.open, manifest)
            try:
                async with timeout(CHECK_TIMEOUT_S):
                    await self._server.swap(opened.manifest, opened.model)
            except TimeoutError:
                raise Unavailable(f"the model did not start to serve within {CHECK_TIMEOUT_S:g} s") from None

    async def _serve_again(self, active: Active) -> None:
        try:
            await self._swap_to(active.manifest)
            self._post(Noted("serving", ""))
        except (EdgepressError, OSError) as error:
            self._post(Noted("serving", f"the active model does not serve: {error}"))

    def _run(self, job: Coroutine[None, None, Event], *, otherwise: life.EventKind) -> None:
        event = self._events()

        async def run() -> None:
            try:
                self._post(await job)
            except (EdgepressError, OSError) as error:
                self._post(event(otherwise, str(error)))

        self._job = self._start(run())

    def _tell(self, kind: life.EventKind, reason: str = "") -> None:
        self.happened(self._events()(kind, reason))

    def _events(self) -> Callable[..., Event]:
        """Make events about the deployment that is wanted now, even when it no longer is."""
        return partial(Event, self._deployment().id)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Unavailable as error:
            logger.error("%s", error)

    def _deployment(self) -> Deployment:
        if self._now.wanted is None:
            raise AssertionError("no deployment is wanted")
        return self._now.wanted

    def _candidate(self) -> Candidate:
        if self._model is None:
            raise AssertionError("no model is a candidate")
        return self._model

    def _occupant(self) -> Active:
        wanted = self._deployment()
        pair = self._disk.slots.pair
        for active in (pair.current, pair.previous):
            if active is not None and active.manifest == wanted.manifest:
                return Active(wanted.id, wanted.manifest, active.variant)
        return Active(wanted.id, wanted.manifest, self._candidate().manifest.variant)
