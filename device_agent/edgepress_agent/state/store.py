"""Files by content: `blobs/<sha256>`, bounded by a quota; the least recently used go first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.manifest import Blob

from edgepress_agent.log import logger
from edgepress_agent.state.files import Files, sha256_of


class Store:
    """Content-addressed files; what is in `folder` was verified before it was given its name."""

    def __init__(self, folder: Path, files: Files) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files = files
        self._verified: set[str] = set()

    def path(self, sha256: str) -> Path:
        """Where a blob is kept."""
        return self._folder / sha256

    def present(self, blob: Blob) -> bool:
        """Whether a blob is here in full length, verified or not."""
        try:
            return self.path(blob.sha256).stat().st_size == blob.size_bytes
        except FileNotFoundError:
            return False

    def holds(self, blob: Blob) -> bool:
        """Whether a blob is here, and had its digest when this run of the agent looked."""
        return blob.sha256 in self._verified and self.present(blob)

    def adopt(self, source: Path, sha256: str) -> None:
        """Take in a file whose digest was just verified: sync, rename, sync the folder."""
        self._files.sync(source)
        self._files.replace(source, self.path(sha256))
        self._files.sync(self._folder)
        self._verified.add(sha256)

    def verify(self, blob: Blob) -> bool:
        """Hold a blob against its digest; a damaged one is removed. Return whether it is right. Run it in a thread."""
        path = self.path(blob.sha256)
        try:
            sound = sha256_of(path) == blob.sha256
        except FileNotFoundError:
            return False  # evicted meanwhile
        except OSError as error:
            logger.warning("blob %s… cannot be read: %s", blob.sha256[:12], error.strerror)
            sound = False
        if sound:
            with contextlib.suppress(OSError):  # a disk that has become read-only: it is right all the same
                os.utime(path)
            self._verified.add(blob.sha256)
        else:
            logger.warning("blob %s… is damaged on this disk: it is fetched again", blob.sha256[:12])
            self._verified.discard(blob.sha256)
            self._remove(path)
        return sound

    def used_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(path.stat().st_size for path in self._folder.iterdir())

    def make_room(self, wanted_bytes: int, quota_bytes: int, keep: Collection[str]) -> None:
        """Evict the least recently used blobs, none of `keep`, until `wanted_bytes` more fit in the quota.

        Raises:
            Unavailable: what is kept leaves no room; nothing was evicted.
        """
        entries = sorted((entry for entry in self._folder.iterdir()), key=lambda path: path.stat().st_mtime_ns)
        sizes = {path: path.stat().st_size for path in entries}
        excess = sum(sizes.values()) + wanted_bytes - quota_bytes
        evicted = []
        for path in entries:
            if excess <= 0:
                break
            if path.name not in keep:
                evicted.append(path)
                excess -= sizes[path]
        if excess > 0:
            raise Unavailable(
                f"disk full: {wanted_bytes} bytes are wanted, and the quota of {quota_bytes} bytes lacks {excess}"
            )
        for path in evicted:
            self._evict(path)

    def evict_all_but(self, keep: Collection[str]) -> int:
        """Remove every blob that is not in `keep`, for a disk that is full; return how many."""
        evicted = [path for path in self._folder.iterdir() if path.name not in keep]
        for path in evicted:
            self._evict(path)
        return len(evicted)

    def _remove(self, path: Path) -> bool:
        try:
            self._files.remove(path)
        except OSError as error:
            logger.warning("blob %s… cannot be removed: %s", path.name[:12], error.strerror)
            return False
        return True

    def _evict(self, path: Path) -> None:
        if not self._remove(path):
            return
        self._verified.discard(path.name)
        logger.info("evicted blob %s…", path.name[:12])
