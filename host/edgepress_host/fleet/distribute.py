"""Who is sent which chunk when, pure: devices' needs in, chunks to publish out.

Devices say what they lack of a blob; the union is published once, for all to hear. What was published and is, as far
as a device's latest bitmap says, still missing there, is outstanding: a device never has more outstanding than the
window that it asked for, and the slowest healthy asker sets the pace. Nothing is sent twice because of a progress
message; only a device that says it stalled is sent its holes again, alone where nobody else waits for them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Wire
from edgepress_protocol.messages import Need
from edgepress_protocol.transfer import HEADER_BYTES, from_bitmap

GATHER_S = 0.2
"""Needs that come within this time of the first one share one broadcast."""

SILENT_S = 5.0
"""A device that has a full window and says nothing for this long no longer holds the others back."""


@dataclass(frozen=True)
class Send:
    """Publish this chunk: to one device, or to all who listen."""

    wire: Wire
    index: int
    device: str | None = None


@dataclass
class _Ask:
    """What one device lacks of one blob: `missing` by its own word, of which `outstanding` was published."""

    missing: frozenset[int]
    outstanding: set[int] = field(default_factory=set)
    repair: frozenset[int] = frozenset()


@dataclass
class _Device:
    """A device that asks. `full_since_s` is when its window filled up, if it is full."""

    window_chunks: int
    full_since_s: float | None = None


@dataclass
class _Job:
    """A blob that somebody lacks; `todo` holds chunk indexes in the order in which they go out."""

    wire: Wire
    ready_at_s: float
    asks: dict[str, _Ask] = field(default_factory=dict)
    todo: deque[int] = field(default_factory=deque)
    changed: bool = True


class Distributor:
    """Needs and what was published of them. Time is passed in, in seconds of any steady clock."""

    def __init__(
        self, *, bytes_per_s: float | None = None, gather_s: float = GATHER_S, silent_s: float = SILENT_S
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._gather_s = gather_s
        self._silent_s = silent_s
        self._free_at_s = 0.0
        self._devices: dict[str, _Device] = {}
        self._jobs: dict[str, _Job] = {}

    def need(self, device: str, need: Need, wire: Wire, now_s: float) -> None:
        """Take in what a device lacks of one blob.

        Raises:
            Rejected: it speaks of another size, or its bitmap does not fit.
        """
        if need.size_bytes != wire.size_bytes:
            raise Rejected(f"needs {need.size_bytes} bytes of blob {wire.sha256[:12]}…, which has {wire.size_bytes}")
        missing = from_bitmap(need.missing, len(wire.chunks))
        asker = self._devices.setdefault(device, _Device(need.window_chunks))
        asker.window_chunks, asker.full_since_s = need.window_chunks, None
        job = self._jobs.get(wire.sha256)
        if job is None:
            if not missing:
                self._tidy()
                return
            job = self._jobs[wire.sha256] = _Job(wire, now_s + self._gather_s)
        before = job.asks.pop(device, _Ask(frozenset()))
        if missing:
            outstanding = set() if need.stalled else before.outstanding & missing
            repair = missing if need.stalled else before.repair & missing
            job.asks[device] = _Ask(missing, outstanding, repair)
            job.changed |= not (missing - outstanding) <= (before.missing - before.outstanding)
        self._note_full(device, now_s)
        self._tidy()

    def gone(self, device: str) -> None:
        """Drop a device: it will say again what it lacks when it is back."""
        for job in self._jobs.values():
            job.asks.pop(device, None)
        self._tidy()

    def due(self, now_s: float) -> list[Send]:
        """Chunks to publish now, in order; they count as published from here on."""
        sends: list[Send] = []
        busy: set[str] = set()
        for job in self._jobs.values():
            if now_s < job.ready_at_s:
                continue
            # One blob after the other for each device: pieces of several would hide each other's progress.
            if busy.isdisjoint(job.asks):
                sends.extend(self._drain(job, now_s))
            if self._pullers(job, now_s):
                busy.update(job.asks)
        return sends

    def wake_at_s(self, now_s: float) -> float | None:
        """When to ask `due` again if nobody says anything before."""
        times = [job.ready_at_s for job in self._jobs.values() if job.ready_at_s > now_s]
        if self._jobs and self._free_at_s > now_s:
            times.append(self._free_at_s)
        full = (device.full_since_s for device in self._devices.values() if device.full_since_s is not None)
        times += [since + self._silent_s for since in full if since + self._silent_s > now_s]
        return min(times, default=None)

    def outstanding(self, device: str) -> int:
        """Chunks published to a device that it has not confirmed."""
        return sum(len(job.asks[device].outstanding) for job in self._jobs.values() if device in job.asks)

    def _drain(self, job: _Job, now_s: float) -> Iterator[Send]:
        if job.changed:
            demand: dict[int, int] = {}
            for ask in job.asks.values():
                for index in ask.missing - ask.outstanding:
                    demand[index] = demand.get(index, 0) + 1
            # What most devices wait for goes first: a late joiner does not slow those ahead of it.
            job.todo = deque(sorted(demand, key=lambda index: (-demand[index], index)))
            job.changed = False
        while job.todo and self._free_at_s <= now_s:
            index = job.todo[0]
            targets = [name for name, ask in job.asks.items() if index in ask.missing and index not in ask.outstanding]
            pulling = [name for name in targets if self._healthy(name, now_s)]
            if not pulling:
                job.todo.popleft()
                job.changed |= bool(targets)
                continue
            if any(self._full(name) and self._healthy(name, now_s) for name in job.asks):
                return
            job.todo.popleft()
            for name in targets:
                job.asks[name].outstanding.add(index)
                self._note_full(name, now_s)
            self._charge(job.wire.chunk_length(index) + HEADER_BYTES, now_s)
            alone = len(targets) == 1 and index in job.asks[targets[0]].repair
            yield Send(job.wire, index, targets[0] if alone else None)

    def _pullers(self, job: _Job, now_s: float) -> bool:
        """Tell whether a healthy device waits for a chunk of this blob that was not published yet."""
        unsent = (name for name, ask in job.asks.items() if len(ask.outstanding) < len(ask.missing))
        return any(self._healthy(name, now_s) for name in unsent)

    def _full(self, device: str) -> bool:
        return self.outstanding(device) >= self._devices[device].window_chunks

    def _healthy(self, device: str, now_s: float) -> bool:
        since = self._devices[device].full_since_s
        return since is None or now_s - since < self._silent_s

    def _note_full(self, device: str, now_s: float) -> None:
        asker = self._devices[device]
        if asker.full_since_s is None and self._full(device):
            asker.full_since_s = now_s

    def _charge(self, size_bytes: int, now_s: float) -> None:
        if self._bytes_per_s:
            self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self._bytes_per_s

    def _tidy(self) -> None:
        self._jobs = {sha256: job for sha256, job in self._jobs.items() if job.asks}
        asking = set(itertools.chain.from_iterable(job.asks for job in self._jobs.values()))
        self._devices = {name: device for name, device in self._devices.items() if name in asking}
