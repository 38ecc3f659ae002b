"""The few operations by which the agent's state reaches the disk.

They are methods of one object that is passed in, so that the tests can cut the power between any two.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK}


class Files:
    """Writes, syncs and renames; each may be the last before the power fails."""

    def write(self, path: Path, data: bytes) -> None:
        """Write a whole file; nothing is certain before `sync`."""
        path.write_bytes(data)

    def sync(self, path: Path) -> None:
        """Bring a file, or the entries of a folder, to the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, in one step, over whatever stood at `target`."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; copy it where the file system knows no links."""
        try:
            target.hardlink_to(source)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source, target)

    def make_folder(self, path: Path) -> None:
        """Make one folder."""
        path.mkdir()

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder; it need not be there."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_atomically(files: Files, path: Path, data: bytes) -> None:
    """Replace a file so that after a power failure it holds the old or the new bytes, never a mixture."""
    temporary = path.with_name(f"{path.name}.new")
    files.write(temporary, data)
    files.sync(temporary)
    files.replace(temporary, path)
    files.sync(path.parent)


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield a file in blocks of 1 MiB."""
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in lower-case hex."""
    state = hashlib.sha256()
    for block in read_blocks(path):
        state.update(block)
    return state.hexdigest()


def is_full(error: OSError) -> bool:
    """Whether an error says that the disk, the quota or the file-size limit is exhausted."""
    return error.errno in _FULL
