"""Which blobs are under way, which chunks of them are here, and what the host is to be told about that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgepress_protocol.errors import Rejected, Unavailable
from edgepress_protocol.manifest import Blob
from edgepress_protocol.messages import Need
from edgepress_protocol.transfer import decode_frame

from edgepress_agent.log import logger, sparingly
from edgepress_agent.state.download import Partial, clear_leftovers, room_for
from edgepress_agent.state.store import Store


@dataclass
class Aim:
    """What changed by a new aim: downloads begun and given up, and blobs for which there is no room now."""

    begun: list[Partial] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    stuck: dict[str, str] = field(default_factory=dict)


class Fetches:
    """Downloads in order of priority; everything goes through the host's one broadcast."""

    def __init__(self, folder: Path, store: Store) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._store = store
        self._partials: dict[str, Partial] = {}
        self._since_need: dict[str, int] = {}
        self._finishing: set[str] = set()
        self.bad_chunks = 0

    @property
    def waiting(self) -> bool:
        """Whether any chunk is missing."""
        return any(not partial.complete for partial in self._partials.values())

    @property
    def under_way(self) -> bool:
        """Whether any download is, complete or not."""
        return bool(self._partials)

    def aim(self, blobs: Sequence[Blob], quota_bytes: int, keep: Iterable[str]) -> Aim:
        """Fetch these, the first first; `keep` are digests that must not be evicted to make room."""
        aim = Aim()
        wanted = {blob.wire.sha256: blob for blob in blobs if not self._store.present(blob)}
        for wire in [wire for wire in self._partials if wire not in wanted and wire not in self._finishing]:
            self._partials.pop(wire).discard()
            aim.dropped.append(wire)
        kept = frozenset(keep)
        for wire, blob in wanted.items():
            if wire in self._partials:
                continue
            try:
                taken = sum(room_for(partial.blob) for partial in self._partials.values())
                self._store.make_room(room_for(blob) + taken, quota_bytes, kept)
                partial = self._open(blob, kept)
            except Unavailable as error:
                aim.stuck[blob.sha256] = str(error)
                continue
            self._partials[wire] = partial
            self._since_need[wire] = 0
            aim.begun.append(partial)
        return aim

    def clear_leftovers(self, blobs: Iterable[Blob]) -> None:
        """Remove partial files of a former run that none of these blobs needs."""
        clear_leftovers(self._folder, set(self._partials).union(blob.wire.sha256 for blob in blobs))

    def take(self, wire: str | None, data: bytes) -> Partial | None:
        """Take in a chunk frame, of the blob `wire`, or of whichever it belongs to; return its download if it was new.

        A bad frame is counted and logged, and changes nothing: its chunk stays missing.
        """
        try:
            frame = decode_frame(data)
            wires = [wire] if wire else [name for name in self._partials if name[:8] == frame.prefix.hex()]
            for name in wires:
                partial = self._partials.get(name)
                if partial is not None and not partial.complete and partial.accept(frame):
                    self._since_need[name] += 1
                    return partial
        except (Rejected, Unavailable) as error:
            self.bad_chunks += 1
            if sparingly(self.bad_chunks):
                logger.warning("dropped a chunk (%d so far): %s", self.bad_chunks, error)
        return None

    def progress(self, partial: Partial, window_chunks: int) -> Need | None:
        """Tell the host how far it is, after every half window and at the end."""
        wire = partial.wire.sha256
        if not partial.complete and self._since_need[wire] < max(1, window_chunks // 2):
            return None
        self._since_need[wire] = 0
        return partial.need(window_chunks, stalled=False)

    def needs(self, window_chunks: int) -> list[Need]:
        """All that is missing, to be sent again whatever is on its way."""
        missing = [partial for partial in self._partials.values() if not partial.complete]
        return [partial.need(window_chunks, stalled=True) for partial in missing]

    def wires(self) -> tuple[str, ...]:
        """Wire forms that the device listens for."""
        return tuple(wire for wire, partial in self._partials.items() if not partial.complete)

    def ready(self) -> list[Partial]:
        """Complete downloads that nobody finishes yet; they are marked as being finished."""
        ready = [p for wire, p in self._partials.items() if p.complete and wire not in self._finishing]
        self._finishing.update(partial.wire.sha256 for partial in ready)
        return ready

    def finish(self, partial: Partial) -> None:
        """Verify, expand and store a complete download; it may take seconds: run it in a thread.

        Raises:
            Rejected: its manifest is wrong.
            Unavailable: the disk is full, or altered it.
        """
        path = partial.finish()
        try:
            self._store.adopt(path, partial.blob.sha256)
        except OSError as error:
            raise Unavailable(f"blobs: {error.strerror}") from error

    def finished(self, partial: Partial, *, again: bool = False) -> None:
        """End a download: it is stored, or no use; or, `again`, fetch what the disk lost of it."""
        wire = partial.wire.sha256
        self._finishing.discard(wire)
        if not again:
            self._partials.pop(wire, None)
            partial.discard()

    def close(self) -> None:
        """Stop; a later run goes on from here."""
        for partial in self._partials.values():
            partial.close()

    def _open(self, blob: Blob, keep: frozenset[str]) -> Partial:
        try:
            partial = Partial(self._folder, blob)
        except Unavailable:
            # The quota has room and the disk has none: what could be fetched again gives way.
            if not self._store.evict_all_but(keep):
                raise
            partial = Partial(self._folder, blob)
        if partial.resumed_chunks:
            logger.info("blob %s…: resuming with %d chunks here", blob.sha256[:12], partial.resumed_chunks)
        return partial
