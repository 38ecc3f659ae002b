"""The controller's core: what devices say goes into the pure fleet; what comes out is kept, then published.

Everything runs in one event loop, so that each event is taken in whole before the next. An event is on disk before
anybody hears of it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from edgepress_protocol.errors import Rejected, Unavailable
from edgepress_protocol.manifest import Blob
from edgepress_protocol.messages import (
    Need,
    Presence,
    Progress,
    Report,
    State,
    Telemetry,
    ToHost,
    decode_to_host,
    encode,
)
from edgepress_protocol.signing import PrivateKey
from edgepress_protocol.topics import Topics
from edgepress_protocol.transfer import encode_frame

from edgepress_host.fleet.blobs import BlobStore
from edgepress_host.fleet.distribute import Distributor, Send
from edgepress_host.fleet.fleet import Fleet
from edgepress_host.fleet.records import Changes, Note
from edgepress_host.fleet.rollout import Rollout, Step, advance, told
from edgepress_host.server.broker import Endpoint
from edgepress_host.server.database import Database
from edgepress_host.server.link import Link
from edgepress_host.server.settings import Settings
from edgepress_host.server.views import Change

log = logging.getLogger(__name__)
M = TypeVar("M", bound=msgspec.Struct)

SUITS: dict[str, tuple[type, ...]] = {
    "up": (Presence,),
    "state": (State,),
    "need": (Need,),
    "report": (Report,),
    "tm": (Progress, Telemetry),
}
REASONS_LOGGED = 20
SENDERS_COUNTED = 10_000


class Core:
    """State of the fleet, in memory and on disk, and the ways in and out."""

    def __init__(self, settings: Settings, key: PrivateKey, database: Database, endpoint: Endpoint) -> None:
        self.settings = settings
        self.endpoint = endpoint
        self.session = secrets.token_hex(16)
        self.started_unix_s = time.time()
        self.database = database
        self.blobs = BlobStore(settings.data_dir / "blobs")
        self.topics = Topics(settings.fleet)
        self.distributor = Distributor(bytes_per_s=settings.bytes_per_s)
        self.fleet = Fleet(
            settings.fleet,
            (msgspec.structs.replace(record, online=False) for record in database.devices()),
            database.trials(state="open"),
            {sha256: payload for sha256, payload, _, _ in database.manifests()},
        )
        self.rollouts = {rollout.id: rollout for rollout in database.rollouts() if rollout.open}
        self.telemetry: dict[str, Telemetry] = {}
        self.rejected: Counter[str] = Counter()
        self.stopping = asyncio.Event()
        self.link = Link(
            endpoint,
            self.topics,
            self.session,
            self,
            keepalive_s=settings.keepalive_s,
            max_pause_s=settings.max_pause_s,
        )
        self._key = key
        self._logged: dict[str, set[str]] = {}
        self._by_wire: dict[str, Blob] = {}
        self._changed = asyncio.Event()
        self._rollouts_changed = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        database.forget_old_events()

    # ---- what devices say

    def on_message(self, topic: str, payload: bytes) -> None:
        """Take in what a device published; what is malformed or hostile is counted, and logged once per reason."""
        device_id = "?"
        try:
            place = self.topics.parse_device(topic)
            device_id = place.device_id
            self._take(device_id, _decode(place.leaf, payload))
        except Rejected as error:
            self._reject(device_id, str(error))

    def _take(self, device_id: str, message: ToHost) -> None:
        now = time.time()
        match message:
            case Presence():
                before = self.fleet.session(device_id)
                self.apply(self.fleet.on_presence(device_id, message, now))
                # A session that is over took what was on its way with it; a will of an earlier one says nothing.
                if (message.session == before) != message.online:
                    self.distributor.gone(device_id)
            case State():
                self.apply(self.fleet.on_state(device_id, _finite(message), now))
            case Report():
                self.apply(self.fleet.on_report(device_id, _finite(message), now))
            case Progress():
                self.apply(self.fleet.on_progress(device_id, message))
            case Need():
                self._take_need(device_id, message)
            case Telemetry() if device_id in self.fleet.devices:
                self.telemetry[device_id] = _finite(message)
                self._wake()
            case _:
                pass

    def _take_need(self, device_id: str, need: Need) -> None:
        record = self.fleet.devices.get(device_id)
        if record is None or record.refused:
            raise Rejected("asks for chunks, but is not of this fleet")
        self.distributor.need(device_id, need, self._blob(need.wire).wire, time.monotonic())
        self.link.look_for_chunks()

    def _blob(self, wire_sha256: str) -> Blob:
        blob = self._by_wire.get(wire_sha256) or self.database.blob_by_wire(wire_sha256)
        if blob is None:
            raise Rejected(f"blob {wire_sha256[:12]}… is wanted, which this host does not have")
        self._by_wire[wire_sha256] = blob
        return blob

    def _reject(self, device_id: str, reason: str) -> None:
        if device_id not in self.rejected and len(self.rejected) >= SENDERS_COUNTED:
            device_id = "?"
        self.rejected[device_id] += 1
        known = self._logged.setdefault(device_id, set())
        if reason not in known and len(known) < REASONS_LOGGED:
            known.add(reason)
            log.warning("device %s: %s", device_id, reason)

    # ---- what the link asks

    def on_connected(self) -> None:
        """Say again what every device is to do: the broker may have forgotten all of it."""
        for device_id in self.fleet.devices:
            self._publish_want(device_id)

    def on_disconnected(self) -> None:
        """Take every device for offline until it speaks again."""
        for device_id in self.fleet.devices:
            self.distributor.gone(device_id)
        self.apply(self.fleet.disconnected())

    def chunks_due(self) -> Iterator[tuple[Send, bytes]]:
        """Chunks to publish now, each framed when it is its turn; one that cannot be read is left out, and said."""
        for send in self.distributor.due(time.monotonic()):
            try:
                chunk = self.blobs.chunk(self._blob(send.wire.sha256), send.index)
            except (Rejected, Unavailable) as error:
                self._reject("host", str(error))
                continue
            yield send, encode_frame(send.wire.sha256, send.index, chunk)

    def chunks_wake_in_s(self) -> float | None:
        """How long until the distributor is to be asked again."""
        now = time.monotonic()
        at = self.distributor.wake_at_s(now)
        return None if at is None else max(at - now, 0.001)

    # ---- what came of it

    def apply(self, changes: Changes, rollouts: tuple[Rollout, ...] = ()) -> None:
        """Keep what changed, then publish it; rollouts go on from there."""
        if not (changes.devices or changes.trials or changes.notes or changes.forgotten or rollouts):
            return
        try:
            self.database.keep(changes, rollouts, time.time())
        except Unavailable as error:
            # Memory is ahead of the disk now; only a fresh start brings them together again.
            if not self._failure.done():
                self._failure.set_exception(error)
            raise
        for rollout in rollouts:
            self.rollouts[rollout.id] = rollout
            if not rollout.open:
                del self.rollouts[rollout.id]
        for device_id in changes.forgotten:
            self.telemetry.pop(device_id, None)
            self.distributor.gone(device_id)
            for leaf in ("up", "state", "want"):
                self.link.retain(self.topics.device(device_id, leaf), b"")
        for device_id in sorted(changes.wants):
            self._publish_want(device_id)
        if changes.notes:
            self._wake()
        self._rollouts_changed.set()

    def take_step(self, before: Rollout | None, step: Step) -> None:
        """Carry out a step of a rollout."""
        after, changes = step.rollout, Changes()
        for device_id, deployment in step.deploy.items():
            if device_id in self.fleet.devices:
                merge(changes, self.fleet.deploy(device_id, deployment))
        if before is None or before.phase != after.phase:
            text = told(after, ":".join(self.fleet.named(after.manifest)))
            changes.notes.append(Note("rollout", text, rollout=after.id))
        self.apply(changes, (after,))

    def _advance_rollouts(self) -> float | None:
        """Take every open rollout a step further; return when one wants to be looked at again."""
        wake: list[float] = []
        for rollout in list(self.rollouts.values()):
            step = advance(rollout, self.fleet.devices, time.time())
            if step.wake_at_unix_s is not None:
                wake.append(step.wake_at_unix_s)
            if step.rollout != rollout or step.deploy:
                self.take_step(rollout, step)
        return min(wake, default=None)

    async def watch_rollouts(self) -> None:
        """Let rollouts go on when their time has come."""
        while True:
            self._rollouts_changed.clear()
            wake_at = self._advance_rollouts()
            try:
                async with asyncio.timeout(None if wake_at is None else max(wake_at - time.time(), 0.0)):
                    await self._rollouts_changed.wait()
            except TimeoutError:
                continue

    async def failed(self) -> None:
        """Wait until the controller cannot go on.

        Raises:
            Unavailable: the database cannot be written.
        """
        await self._failure

    def _publish_want(self, device_id: str) -> None:
        want = self.fleet.want(device_id, lambda payload: self._key.sign("manifest", payload))
        if want is not None:
            self.link.retain(self.topics.device(device_id, "want"), encode(self._key.sign("want", encode(want))))

    def forget_blobs(self) -> None:
        """Look descriptions of files up again: some were removed."""
        self._by_wire.clear()

    # ---- who waits for changes

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changes(self, after: int | None, timeout_s: float) -> list[Change]:
        """Events after a sequence number, as soon as there are any; the latest ones at once for None."""
        if after is None:
            return self.database.latest_changes()
        changed = self._changed
        found = self.database.changes(after)
        if found or timeout_s <= 0 or self.stopping.is_set():
            return found
        waits = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(self.stopping.wait())]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self.database.changes(after)


def merge(into: Changes, more: Changes) -> None:
    """Add what came of one event to what came of another."""
    into.devices |= more.devices
    into.trials |= more.trials
    into.outcomes += more.outcomes
    into.wants |= more.wants
    into.notes += more.notes
    into.forgotten += more.forgotten


def _decode(leaf: str, payload: bytes) -> ToHost:
    message = decode_to_host(payload)
    if not isinstance(message, SUITS.get(leaf, ())):
        raise Rejected(f"a {type(message).__name__} has no place on its topic {leaf!r}")
    return message


def _finite(message: M) -> M:
    """Return a message that JSON can hold, as database and REST do.

    Raises:
        Rejected: it has a number that is infinite or not a number.
    """
    try:
        msgspec.json.decode(msgspec.json.encode(message), type=type(message))
    except msgspec.MsgspecError as error:
        raise Rejected(f"a number in its {type(message).__name__} is not finite: {error}") from error
    return message
