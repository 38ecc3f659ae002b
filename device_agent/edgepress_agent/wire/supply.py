"""Brings the wanted blobs onto the disk: aims, says what is missing, takes chunks, stores what is complete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence

from edgepress_protocol.errors import EdgepressError, Unavailable
from edgepress_protocol.manifest import Blob
from edgepress_protocol.messages import Config

from edgepress_agent.happenings import Happening, Stalled, Stored, Verified
from edgepress_agent.log import logger
from edgepress_agent.settings import Timing
from edgepress_agent.state.disk import Disk
from edgepress_agent.state.download import Partial
from edgepress_agent.wire.stall import Stall
from edgepress_agent.wire.voice import Voice


class Supply:
    """Downloads, as the host is told of them; long work runs as a job, and comes back as a happening."""

    def __init__(
        self,
        disk: Disk,
        voice: Voice,
        timing: Timing,
        start: Callable[[Coroutine[None, None, None]], object],
        post: Callable[[Happening], None],
    ) -> None:
        self._disk = disk
        self._voice = voice
        self._start = start
        self._post = post
        self._stall = Stall(timing.stall_s, timing.stall_max_s, lambda: post(Stalled()))
        self._verifying = False
        self.config = Config()

    @property
    def moves(self) -> bool:
        """Whether anything is under way whose end may make room on the disk."""
        return self._verifying or self._disk.fetches.under_way

    def aim(self, blobs: Sequence[Blob]) -> dict[str, str]:
        """Fetch these blobs, the first first; return those for which there is no room, by digest, with the reason."""
        disk = self._disk
        keep = disk.slots.blobs().union(blob.sha256 for blob in blobs)
        aim = disk.fetches.aim(blobs, self.config.store_quota_bytes, keep)
        self._voice.stop_listening(aim.dropped)
        fresh = [partial for partial in aim.begun if not partial.complete]
        self._voice.listen([partial.wire.sha256 for partial in fresh])
        self._voice.needs(partial.need(self.config.window_chunks, stalled=False) for partial in fresh)
        self._verify([blob for blob in blobs if disk.store.present(blob) and not disk.store.holds(blob)])
        for partial in disk.fetches.ready():
            self._start(self._store(partial))
        return aim.stuck

    def chunk(self, wire: str | None, frame: bytes) -> bool:
        """Take in a chunk; return whether it was the last of its blob."""
        fetches = self._disk.fetches
        partial = fetches.take(wire, frame)
        if partial is None:
            return False
        self._stall.moved()
        need = fetches.progress(partial, self.config.window_chunks)
        if need is not None:
            self._voice.needs([need])
        if partial.complete:
            self._voice.stop_listening([partial.wire.sha256])
        return partial.complete

    def stored(self, partial: Partial, error: EdgepressError | None) -> EdgepressError | None:
        """End a download, or fetch again what the disk lost of it; return the error if it is final."""
        if isinstance(error, Unavailable) and not partial.complete:
            logger.error("%s", error)
            self._disk.fetches.finished(partial, again=True)
            self._voice.listen([partial.wire.sha256])
            self._voice.needs([partial.need(self.config.window_chunks, stalled=True)])
            return None
        self._disk.fetches.finished(partial)
        if error is None:
            logger.info("stored blob %s…, %d bytes", partial.blob.sha256[:12], partial.blob.size_bytes)
        return error

    def verified(self) -> None:
        """Blobs of a former run have been verified; others may be now."""
        self._verifying = False

    def listen(self) -> None:
        """Subscribe again, in a new session."""
        self._voice.listen(self._disk.fetches.wires())

    def say_needs(self) -> None:
        """Ask for everything that is missing, whatever is on its way."""
        self._voice.needs(self._disk.fetches.needs(self.config.window_chunks))

    def watch(self, *, connected: bool) -> None:
        """Notice from now on when nothing arrives, if anything should."""
        self._stall.watch(waiting=connected and self._disk.fetches.waiting)

    def _verify(self, blobs: Sequence[Blob]) -> None:
        if blobs and not self._verifying:
            self._verifying = True
            self._start(self._verify_all(blobs))

    async def _verify_all(self, blobs: Sequence[Blob]) -> None:
        for blob in blobs:
            await asyncio.to_thread(self._disk.store.verify, blob)
        self._post(Verified())

    async def _store(self, partial: Partial) -> None:
        try:
            await asyncio.to_thread(self._disk.fetches.finish, partial)
            self._post(Stored(partial, None))
        except EdgepressError as error:
            self._post(Stored(partial, error))
