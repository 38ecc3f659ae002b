"""Files that are whole or absent, whenever the power goes: write beside, fsync, rename, fsync the folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path`, in place of what was there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path`.

    Raises:
        FileExistsError: something stands there; it is left as it is.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write(temporary, data, mode=mode)
        os.link(temporary, path)  # unlike a rename, a link never replaces
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file that is already on disk, in place of what was at `target`."""
    source.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
