"""Makes the device what the host's `want` says, whatever happens in between.

One task takes every happening in turn, so nothing here needs a lock; long work runs beside it and comes back as a
happening. The wanted deployment is `activation`'s, the open trials are `trials`', their files are `supply`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from edgepress_protocol.errors import EdgepressError, Rejected
from edgepress_protocol.manifest import MAX_TEXT, Blob
from edgepress_protocol.measurement import Device
from edgepress_protocol.messages import Config, Failed, HostState, State, Telemetry, decode_to_device
from edgepress_protocol.version import SPOKEN, negotiate

from edgepress_agent.activation import Activation
from edgepress_agent.clock import clock_synced
from edgepress_agent.deployment import Event
from edgepress_agent.happenings import Broke, Ended, Happening, Noted, Stalled, Stored, Verified
from edgepress_agent.log import Said
from edgepress_agent.measure.bench import Bench, Phase
from edgepress_agent.serving.serve import Server
from edgepress_agent.settings import Settings
from edgepress_agent.state.disk import Disk, trouble
from edgepress_agent.state.download import Partial
from edgepress_agent.trials import Trials
from edgepress_agent.wants import open_want
from edgepress_agent.wire.link import Arrived, Connected, Disconnected, Link
from edgepress_agent.wire.supply import Supply
from edgepress_agent.wire.voice import Voice


class Converger:
    """The agent's head: everything that happens is put into its inbox."""

    def __init__(self, settings: Settings, disk: Disk, server: Server | None, probe: Callable[[], Device]) -> None:
        self._settings = settings
        self._disk = disk
        self._probe = probe
        self._device = probe()
        self._inbox: asyncio.Queue[Happening] = asyncio.Queue()
        self.link = Link(settings, self.post)
        self._voice = Voice(settings, self.link)
        lock = settings.measure_lock or settings.state_dir / "measure.lock"
        verify = disk.store.verify
        self.bench = Bench(settings.root, lock, server, verify, self._on_phase, lambda *end: self.post(Ended(*end)))
        self._trials = Trials(disk, self.bench, self._voice)
        self._activation = Activation(disk, server, self._start, self.post)
        self._supply = Supply(disk, self._voice, settings.timing, self._start, self.post)
        self._jobs: set[asyncio.Task[None]] = set()
        self._session = ""
        self._host = ("", False)
        self._notes: dict[str, str] = {}
        self._said = Said()
        self.config_changed = asyncio.Event()

    @property
    def config(self) -> Config:
        """Settings that the host decides."""
        return self._supply.config

    async def run(self) -> None:
        """Restore what was active, then take one happening after another, for ever."""
        self._note("disk", trouble(self._settings.state_dir))
        self._note("slots", await asyncio.to_thread(self._disk.slots.restore))
        self._activation.resume()
        while True:
            self._take(await self._inbox.get())

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
        self._supply.watch(connected=False)
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        self._disk.fetches.close()

    def _take(self, happening: Happening) -> None:
        if isinstance(happening, Arrived):
            changed = self._arrived(happening.topic, happening.payload)
        else:
            self._happened(happening)
            changed = True
        if changed:
            self._converge()

    def _happened(self, happening: Happening) -> None:
        match happening:
            case Connected(session):
                self._connected(session)
            case Disconnected():
                self._session = ""
            case Stalled():
                self._supply.say_needs()
            case Stored(partial, failure):
                self._stored(partial, failure)
            case Verified():
                self._supply.verified()
            case Ended(trial, outcome):
                self._trials.end(trial, outcome)
            case Event():
                self._activation.happened(happening)
            case Noted(subject, line):
                self._note(subject, line)
            case Broke(error):
                raise error

    def _arrived(self, topic: str, payload: bytes) -> bool:
        leaf = topic.removeprefix(f"{self._settings.topics.root}/")
        if leaf.startswith("blob/"):
            return self._supply.chunk(leaf.removeprefix("blob/"), payload)
        if leaf.endswith("/chunk"):
            return self._supply.chunk(None, payload)
        if leaf.endswith("/want"):
            self._want(payload)
        elif leaf == "host/state":
            self._hear_host(payload)
        return True

    def _connected(self, session: str) -> None:
        self._session = session
        self._device = self._probe()
        self._voice.greet(session)
        self._voice.reports(self._disk.outbox.waiting())
        self._supply.listen()
        # What is needed is said when the host is heard, which is at once if it is there; said twice it is sent twice.
        self._host = ("", False)

    def _hear_host(self, payload: bytes) -> None:
        try:
            host = decode_to_device(payload)
            if not isinstance(host, HostState):
                raise Rejected(f"a {type(host).__name__} stands where the host's state belongs")  # noqa: TRY301
            negotiate(SPOKEN, host.speaks)
        except Rejected as error:
            self._note("host", str(error))
            return
        self._note("host", "")
        if host.online and self._host != (host.session, True):
            self._supply.say_needs()
        self._host = (host.session, host.online)

    def _want(self, payload: bytes) -> None:
        if not payload:
            return
        settings = self._settings
        try:
            wanted = open_want(payload, settings.trusted, settings.fleet, settings.device_id)
        except Rejected as error:
            self._note("want", str(error))
            return
        self._note("want", "")
        highest = self._disk.memory.facts.generation
        if wanted.want.generation < highest:
            self._said.warn("stale", f"ignored a want of generation {wanted.want.generation}: {highest} was seen")
            return
        self._disk.memory.saw(wanted.want.generation)
        self._note("manifest", "; ".join(sorted(set(wanted.refused.values()))))
        self._supply.config = wanted.want.config
        self.config_changed.set()
        self._activation.want(wanted)
        self._trials.want(wanted)
        self._disk.fetches.clear_leftovers(self._blobs())

    def _converge(self) -> None:
        """Take every step that is possible now, and say where the device stands. Doing it once more changes nothing."""
        self._activation.look()
        self._trials.look()
        while (stuck := self._supply.aim(self._blobs())) and not self._moves() and self._give_up(stuck):
            pass
        self._supply.watch(connected=bool(self._session))
        if self._activation.healthy:
            self._note("slots", "")
        self._say_state()

    def _blobs(self) -> tuple[Blob, ...]:
        return (*self._activation.blobs(), *self._trials.blobs())

    def _moves(self) -> bool:
        return self._supply.moves or self._activation.busy or bool(self.bench.trials())

    def _give_up(self, stuck: dict[str, str]) -> bool:
        """Give up the first that waits for a blob which cannot be had; return whether there was one."""
        reasons = [stuck[blob.sha256] for blob in self._activation.blobs() if blob.sha256 in stuck]
        return (bool(reasons) and self._activation.cannot_fetch(reasons[0])) or self._trials.give_up(stuck)

    def _stored(self, partial: Partial, failure: EdgepressError | None) -> None:
        error = self._supply.stored(partial, failure)
        if error is not None:
            self._trials.refuse(
                partial.blob, Failed("rejected" if isinstance(error, Rejected) else "error", str(error))
            )
            if partial.blob in self._activation.blobs():
                self._activation.cannot_fetch(str(error))

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
                refused="; ".join(line for _, line in sorted(self._notes.items()) if line)[:MAX_TEXT],
            )
        )

    def _note(self, subject: str, line: str) -> None:
        self._notes[subject] = line
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
