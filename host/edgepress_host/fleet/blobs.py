"""The host's files by content: each as it is and in the form in which it travels.

`files/<sha256>` holds a file, `wires/<sha256>` its wire form where that differs. Whatever is read is held against
its digest first: a disk that lies is found out here, not on a board.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
from collections.abc import AsyncIterable, Iterable
from pathlib import Path

from edgepress_protocol import transfer
from edgepress_protocol.errors import Rejected, Unavailable
from edgepress_protocol.manifest import MAX_BLOB_BYTES, Blob, Wire, digest
from edgepress_protocol.version import SPOKEN

from edgepress_host import durable


class BlobStore:
    """Files of one data directory."""

    def __init__(self, root: Path) -> None:
        self._files = root / "files"
        self._wires = root / "wires"
        for folder in (self._files, self._wires):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left_over in folder.glob(".*"):  # of a controller that was killed while it wrote
                left_over.unlink()

    async def receive(self, sha256: str, pieces: AsyncIterable[bytes]) -> None:
        """Store a file that arrives piece by piece.

        Raises:
            Rejected: it is empty, too large, or its digest is not `sha256`; nothing is kept.
            Unavailable: the disk is full.
        """
        temporary = self._files / f".{secrets.token_hex(8)}"
        hasher, size = hashlib.sha256(), 0
        try:
            with temporary.open("xb") as file:
                async for piece in pieces:
                    size += len(piece)
                    if size > MAX_BLOB_BYTES:
                        raise Rejected(f"blob {sha256[:12]}…: more than {MAX_BLOB_BYTES} bytes")
                    hasher.update(piece)
                    file.write(piece)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            if not size:
                raise Rejected(f"blob {sha256[:12]}…: the file is empty")
            if hasher.hexdigest() != sha256:
                raise Rejected(
                    f"blob {sha256[:12]}…: what came has the SHA-256 {hasher.hexdigest()[:12]}…; send it again"
                )
            durable.move(temporary, self._files / sha256)
        except OSError as error:
            raise _unavailable(error, self._files) from error
        finally:
            temporary.unlink(missing_ok=True)

    def describe(self, sha256: str, protocol: int = SPOKEN[1]) -> Blob:
        """Cut a stored file into chunks and keep its wire form, for agents that speak at least a protocol version.

        Raises:
            Rejected: the file was altered on disk.
            Unavailable: it is not there, or the disk is full.
        """
        try:
            blob, form = transfer.describe((self._files / sha256).read_bytes(), protocol=protocol)
            if blob.sha256 != sha256:
                raise Rejected(f"blob {sha256[:12]}… was altered on disk; upload it again")
            if blob.wire.codec != "none":
                durable.write(self._wires / blob.wire.sha256, form)
        except OSError as error:
            raise _unavailable(error, self._files) from error
        return blob

    def holds(self, blob: Blob) -> bool:
        """Tell whether the file and its wire form are there, at their full lengths."""
        return _has(self._files / blob.sha256, blob.size_bytes) and _has(self._wire_path(blob), blob.wire.size_bytes)

    def intact(self, blob: Blob) -> bool:
        """Tell whether the wire form is there, byte for byte."""
        try:
            return digest(self._wire_path(blob).read_bytes()) == blob.wire.sha256
        except OSError:
            return False

    def chunk(self, blob: Blob, index: int) -> bytes:
        """Read one chunk of the wire form.

        Raises:
            Rejected: it was altered on disk.
            Unavailable: it cannot be read.
        """
        wire: Wire = blob.wire
        try:
            with self._wire_path(blob).open("rb") as file:
                chunk = os.pread(file.fileno(), wire.chunk_length(index), index * wire.chunk_bytes)
        except OSError as error:
            raise _unavailable(error, self._wires) from error
        if hashlib.sha256(chunk).digest() != wire.chunks[index]:
            raise Rejected(f"chunk {index} of blob {blob.sha256[:12]}… was altered on disk; upload the file again")
        return chunk

    def sweep(self, kept: Iterable[Blob], older_than_unix_s: float) -> int:
        """Remove every file that is not of `kept`, but those younger than a time; return the number of bytes freed."""
        freed, blobs = 0, list(kept)
        files, wires = {blob.sha256 for blob in blobs}, {blob.wire.sha256 for blob in blobs}
        for folder, names in ((self._files, files), (self._wires, wires)):
            for path in folder.iterdir():
                if path.name.startswith("."):  # somebody writes it now
                    continue
                found = path.stat()
                if path.name not in names and found.st_mtime <= older_than_unix_s:
                    freed += found.st_size
                    path.unlink()
        return freed

    def _wire_path(self, blob: Blob) -> Path:
        return self._files / blob.sha256 if blob.wire.codec == "none" else self._wires / blob.wire.sha256


def _has(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False


def _unavailable(error: OSError, folder: Path) -> Unavailable:
    what = "disk full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else error.strerror or str(error)
    return Unavailable(f"cannot keep or read files in {folder}: {what}")
