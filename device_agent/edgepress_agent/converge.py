"""Makes the device what the host's `want` says, whatever happens in between.

One task takes every event in turn, so nothing here needs a lock; long work runs beside it and comes back as an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from edgepress_protocol.errors import EdgepressError, Rejected, Unavailable
from edgepress_protocol.manifest import Blob
from edgepress_protocol.measurement import Device
from edgepress_protocol.messages import Config, Failed, HostState, State, Telemetry, decode_to_device
from edgepress_protocol.version import SPOKEN, negotiate

from edgepress_agent.activation import Activation
from edgepress_agent.bench import Bench, Outcome, Phase
from edgepress_agent.clock import clock_synced
from edgepress_agent.deployment import Event
from edgepress_agent.disk import Disk
from edgepress_agent.download import Partial
from edgepress_agent.link import Arrived, Connected, Disconnected, Link, LinkEvent
from edgepress_agent.log import Said, logger
from edgepress_agent.serve import Server
from edgepress_agent.settings import Settings
from edgepress_agent.stall import Stall
from edgepress_agent.trials import Trials
from edgepress_agent.voice import Voice
from edgepress_agent.wants import open_want


@dataclass(frozen=True)
class Stored:
    """A download came to its end, well or not."""

    partial: Partial
    error: EdgepressError | None


@dataclass(frozen=True)
class Verified:
    """Blobs of a former run were held against their digests."""


@dataclass(frozen=True)
class Ended:
    """A trial ended; without an outcome where it was withdrawn."""

    trial: str
    outcome: Outcome | None


@dataclass(frozen=True)
class Stalled:
    """Something is missing, and nothing arrives."""


@dataclass(frozen=True)
class Broke:
    """A job beside the main task hit a bug: the process is to end with it."""

    error: BaseException


Happening = LinkEvent | Event | Stored | Verified | Ended | Stalled | Broke


class Converger:
    """The agent's head: everything that happens is put into its inbox."""

    def __init__(self, settings: Settings, disk: Disk, server: Server | None, probe: Callable[[], Device]) -> None:
        self._settings = settings
        self._disk = disk
        self._server = server
        self._probe = probe
        self._inbox: asyncio.Queue[Happening] = asyncio.Queue()
        self.link = Link(settings, self.post)
        self._voice = Voice(settings, self.link)
        self._device = probe()
        lock = settings.measure_lock or settings.state_dir / "measure.lock"
        self.bench = Bench(settings.root, lock, server, self._on_phase, lambda *end: self.post(Ended(*end)))
        self._trials = Trials(disk, self.bench, self._voice)
        self._activation = Activation(disk, server, self._start, self.post)
        timing = settings.timing
        self._stall = Stall(timing.stall_s, timing.stall_max_s, lambda: self.post(Stalled()))
        self._jobs: set[asyncio.Task[None]] = set()
        self._verifying = False
        self._session = ""
        self._host = ("", False)
        self._refused: dict[str, str] = {}
        self._said = Said()
        self.config = Config()
        self.config_changed = asyncio.Event()

    def post(self, happening: Happening) -> None:
        """Put something into the inbox."""
        self._inbox.put_nowait(happening)

    def say_telemetry(self, reading: Telemetry) -> None:
        """Tell the host how the board is."""
        self._voice.telemetry(reading)

    def stop_on_purpose(self) -> None:
        """Note that the end which follows is nobody's fault."""
        self._trials.stopped()

    async def close(self) -> None:
        """End every job; the disk keeps what they have reached."""
        self._stall.watch(waiting=False)
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        self._disk.fetches.close()

    async def run(self) -> None:
        """Restore what was active, then take one happening after another, for ever."""
        await self._restore()
        while True:
            self._take(await self._inbox.get())

    def _take(self, happening: Happening) -> None:
        match happening:
            case Arrived(topic, payload):
                self._arrived(topic, payload)
                return
            case Connected(session):
                self._connected(session)
            case Disconnected():
                self._session = ""
                self._stall.watch(waiting=False)
            case Stalled():
                self._say_needs()
            case Stored(partial, failure):
                self._stored(partial, failure)
            case Verified():
                self._verifying = False
            case Ended(trial, outcome):
                self._trials.end(trial, outcome)
            case Event():
                self._activation.happened(happening)
            case Broke(error):
                raise error
        self._converge()

    async def _restore(self) -> None:
        slots = self._disk.slots
        self._refuse("slots", await asyncio.to_thread(slots.restore))
        if self._server is not None and slots.pair.current is not None:
            try:
                opened = slots.open(slots.pair.current.manifest)
                await self._server.swap(opened.manifest, opened.model)
            except (EdgepressError, OSError) as error:
                self._refuse("serving", f"the active model does not serve: {error}")

    def _arrived(self, topic: str, payload: bytes) -> None:
        leaf = topic.removeprefix(f"{self._settings.topics.root}/")
        if leaf.startswith("blob/"):
            self._chunk(leaf.removeprefix("blob/"), payload)
        elif leaf.endswith("/chunk"):
            self._chunk(None, payload)
        elif leaf.endswith("/want"):
            self._want(payload)
            self._converge()
        elif leaf == "host/state":
            self._hear_host(payload)
            self._converge()

    def _connected(self, session: str) -> None:
        self._session = session
        self._device = self._probe()
        self._voice.greet(session)
        self._voice.reports(self._disk.outbox.waiting())
        self._voice.listen(self._disk.fetches.wires())
        # What is needed is said when the host is heard, which is at once if it is there; said twice it is sent twice.
        self._host = ("", False)

    def _hear_host(self, payload: bytes) -> None:
        try:
            host = decode_to_device(payload)
            if not isinstance(host, HostState):
                raise Rejected(f"a {type(host).__name__} stands where the host's state belongs")  # noqa: TRY301
            negotiate(SPOKEN, host.speaks)
        except Rejected as error:
            self._refuse("host", str(error))
            return
        self._refuse("host", "")
        if host.online and self._host != (host.session, True):
            self._say_needs()
        self._host = (host.session, host.online)

    def _want(self, payload: bytes) -> None:
        if not payload:
            return
        settings = self._settings
        try:
            wanted = open_want(payload, settings.trusted, settings.fleet, settings.device_id)
        except Rejected as error:
            self._refuse("want", str(error))
            return
        self._refuse("want", "")
        highest = self._disk.memory.facts.generation
        if wanted.want.generation < highest:
            self._said.warn("stale", f"ignored a want of generation {wanted.want.generation}: {highest} was seen")
            return
        self._disk.memory.saw(wanted.want.generation)
        self._refuse("manifest", "; ".join(sorted(set(wanted.refused.values()))))
        self.config = wanted.want.config
        self.config_changed.set()
        self._activation.want(wanted)
        self._trials.want(wanted)
        self._disk.fetches.clear_leftovers((*self._activation.blobs(), *self._trials.blobs()))

    def _chunk(self, wire: str | None, payload: bytes) -> None:
        fetches = self._disk.fetches
        partial = fetches.take(wire, payload)
        if partial is None:
            return
        self._stall.moved()
        need = fetches.progress(partial, self.config.window_chunks)
        if need is not None:
            self._voice.needs([need])
        if partial.complete:
            self._voice.stop_listening([partial.wire.sha256])
            self._converge()

    def _converge(self) -> None:
        """Take every step that is possible now, and say where the device stands. Doing it once more changes nothing."""
        self._activation.look()
        self._trials.look()
        self._aim()
        self._store_what_is_complete()
        self._stall.watch(waiting=bool(self._session) and self._disk.fetches.waiting)
        self._say_state()

    def _aim(self) -> None:
        disk = self._disk
        blobs = (*self._activation.blobs(), *self._trials.blobs())
        keep = disk.slots.blobs().union(blob.sha256 for blob in blobs)
        aim = disk.fetches.aim(blobs, self.config.store_quota_bytes, keep)
        self._voice.stop_listening(aim.dropped)
        fresh = [partial for partial in aim.begun if not partial.complete]
        self._voice.listen([partial.wire.sha256 for partial in fresh])
        self._voice.needs(partial.need(self.config.window_chunks, stalled=False) for partial in fresh)
        self._verify([blob for blob in blobs if disk.store.present(blob) and not disk.store.holds(blob)])
        if aim.stuck and not self._something_moves():
            self._give_up(aim.stuck)

    def _something_moves(self) -> bool:
        """Whether anything is under way whose end may make room on the disk."""
        busy = self._verifying or self._activation.busy
        return busy or bool(self.bench.trials()) or self._disk.fetches.under_way

    def _give_up(self, stuck: dict[str, str]) -> None:
        reasons = [stuck[blob.sha256] for blob in self._activation.blobs() if blob.sha256 in stuck]
        if (reasons and self._activation.cannot_fetch(reasons[0])) or self._trials.give_up(stuck):
            self._aim()

    def _verify(self, blobs: list[Blob]) -> None:
        if not blobs or self._verifying:
            return
        self._verifying = True

        async def verify() -> None:
            for blob in blobs:
                await asyncio.to_thread(self._disk.store.verify, blob)
            self.post(Verified())

        self._start(verify())

    def _store_what_is_complete(self) -> None:
        for partial in self._disk.fetches.ready():
            self._start(self._store(partial))

    async def _store(self, partial: Partial) -> None:
        try:
            await asyncio.to_thread(self._disk.fetches.finish, partial)
            self.post(Stored(partial, None))
        except EdgepressError as error:
            self.post(Stored(partial, error))

    def _stored(self, partial: Partial, error: EdgepressError | None) -> None:
        fetches = self._disk.fetches
        if isinstance(error, Unavailable) and not partial.complete:
            logger.error("%s", error)
            fetches.finished(partial, again=True)
            self._voice.listen([partial.wire.sha256])
            self._voice.needs([partial.need(self.config.window_chunks, stalled=True)])
            return
        fetches.finished(partial)
        if error is None:
            logger.info("stored blob %s…, %d bytes", partial.blob.sha256[:12], partial.blob.size_bytes)
            return
        self._trials.refuse(partial.blob, Failed("rejected" if isinstance(error, Rejected) else "error", str(error)))
        if partial.blob in self._activation.blobs():
            self._activation.cannot_fetch(str(error))

    def _say_needs(self) -> None:
        self._voice.needs(self._disk.fetches.needs(self.config.window_chunks))

    def _say_state(self) -> None:
        if not self._session:
            return
        pair = self._disk.slots.pair
        self._voice.state(
            State(
                session=self._session,
                device=self._device,
                generation=self._disk.memory.facts.generation,
                active=pair.current,
                previous=pair.previous,
                deployment=self._activation.status,
                waiting_reports=len(self._disk.outbox),
                clock_synced=clock_synced(),
                refused="; ".join(line for _, line in sorted(self._refused.items()) if line)[:4096],
            )
        )

    def _refuse(self, subject: str, line: str) -> None:
        self._refused[subject] = line
        if line:
            self._said.warn(subject, line)
        else:
            self._said.forget(subject)

    def _on_phase(self, trial: str, phase: Phase, detail: str) -> None:
        self._trials.phase(trial, phase, detail)

    def _start(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)
        return task

    def _job_done(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.post(Broke(error))
