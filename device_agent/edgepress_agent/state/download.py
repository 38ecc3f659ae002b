"""One blob under way: chunks written in place into a preallocated file, and a journal of those that are there.

The journal has a byte for each chunk and is preallocated too: a disk that fills up later stops no download. After a
SIGKILL or a power failure it says which chunks may be there, and their digests say which are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from edgepress_protocol.codec import decode
from edgepress_protocol.errors import Rejected, Unavailable
from edgepress_protocol.manifest import Blob
from edgepress_protocol.messages import Need
from edgepress_protocol.transfer import Frame, check_chunk, to_bitmap

from edgepress_agent.state.files import is_full, read_blocks, sha256_of

_HERE = b"\1"


class Partial:
    """The wire form of one blob, in part: `<wire>.part`, `<wire>.journal`, and `<wire>.blob` to expand into."""

    def __init__(self, folder: Path, blob: Blob) -> None:
        """Make room on the disk, or go on where a former run stopped.

        Raises:
            Unavailable: the disk is full, before a byte has travelled.
        """
        self.blob = blob
        self.wire = blob.wire
        self._part = folder / f"{self.wire.sha256}.part"
        self._journal = folder / f"{self.wire.sha256}.journal"
        self._expanded = folder / f"{self.wire.sha256}.blob"
        self._data = -1
        self._log = -1
        resumes = self._part.exists()
        try:
            self._open()
        except OSError as error:
            self.close() if resumes else self.discard()
            if is_full(error):
                raise Unavailable(f"disk full: no room for {room_for(blob)} bytes of a download") from error
            raise Unavailable(f"{self._part}: {error.strerror}") from error
        self.missing = self._what_is_missing()
        self.resumed_chunks = len(self.wire.chunks) - len(self.missing)

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return not self.missing

    def accept(self, frame: Frame) -> bool:
        """Write one chunk in its place; return False where it was here already.

        Raises:
            Rejected: it is not the chunk that the manifest describes; nothing changed.
            Unavailable: the disk failed.
        """
        check_chunk(self.wire, frame)
        if frame.index not in self.missing:
            return False
        try:
            _write_at(self._data, frame.chunk, frame.index * self.wire.chunk_bytes)
            _write_at(self._log, _HERE, frame.index)
        except OSError as error:
            raise Unavailable(f"{self._part}: {error.strerror}") from error
        self.missing.discard(frame.index)
        return True

    def need(self, window_chunks: int, *, stalled: bool) -> Need:
        """Tell the host what is missing of this blob."""
        bits = to_bitmap(self.missing, len(self.wire.chunks))
        return Need(self.wire.sha256, self.wire.size_bytes, bits, window_chunks, stalled)

    def finish(self) -> Path:
        """Check the whole, undo the codec, check again; return the file that is the blob.

        Raises:
            Rejected: the manifest contradicts itself, or expands beyond what it declares.
            Unavailable: the disk is full, or altered what was written; `missing` says what it lost.
        """
        try:
            if sha256_of(self._part) != self.wire.sha256:
                self._blame_disk_or_manifest()
            path, found = self._expand()
        except OSError as error:
            reason = "disk full" if is_full(error) else str(error.strerror)
            raise Unavailable(f"{reason}: cannot expand a download to {self.blob.size_bytes} bytes") from error
        if found != self.blob.sha256:
            raise Rejected(f"the file's SHA-256 is {found[:12]}…, its manifest says {self.blob.sha256[:12]}…")
        if (size_bytes := path.stat().st_size) != self.blob.size_bytes:
            raise Rejected(f"the file has {size_bytes} bytes, its manifest says {self.blob.size_bytes}")
        return path

    def close(self) -> None:
        """Let the files be; a later run goes on with them."""
        for descriptor in (self._data, self._log):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._log = -1

    def discard(self) -> None:
        """Remove every trace; what a disk that has become read-only keeps is removed at a later start."""
        self.close()
        for path in (self._part, self._journal, self._expanded):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _open(self) -> None:
        self._data = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._data, 0, self.wire.size_bytes)
        os.ftruncate(self._data, self.wire.size_bytes)
        self._log = os.open(self._journal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._log, 0, len(self.wire.chunks))
        os.ftruncate(self._log, len(self.wire.chunks))
        if self.wire.codec != "none":
            with self._expanded.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, self.blob.size_bytes)

    def _what_is_missing(self) -> set[int]:
        marks = os.pread(self._log, len(self.wire.chunks), 0)
        return {index for index, mark in enumerate(marks) if not mark or not self._is_right(index)}

    def _is_right(self, index: int) -> bool:
        chunk = os.pread(self._data, self.wire.chunk_length(index), index * self.wire.chunk_bytes)
        return hashlib.sha256(chunk).digest() == self.wire.chunks[index]

    def _blame_disk_or_manifest(self) -> None:
        self.missing = {index for index in range(len(self.wire.chunks)) if not self._is_right(index)}
        if self.missing:
            raise Unavailable(f"the disk altered {len(self.missing)} chunks of a download: they are fetched again")
        raise Rejected("every chunk fits the manifest, and their whole does not: it contradicts itself")

    def _expand(self) -> tuple[Path, str]:
        if self.wire.codec == "none":
            return self._part, self.wire.sha256
        state = hashlib.sha256()
        with self._expanded.open("r+b") as stream:
            for piece in decode(self.wire.codec, read_blocks(self._part), self.blob.size_bytes):
                state.update(piece)
                stream.write(piece)
        return self._expanded, state.hexdigest()


def room_for(blob: Blob) -> int:
    """Bytes that a download takes on the disk, at its most."""
    return blob.wire.size_bytes + (0 if blob.wire.codec == "none" else blob.size_bytes)


def clear_leftovers(folder: Path, wanted: set[str]) -> None:
    """Remove the partial files of blobs that nobody wants any more; `wanted` holds digests of wire forms."""
    for path in folder.iterdir():
        if path.stem not in wanted:
            with contextlib.suppress(OSError):
                path.unlink()


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
