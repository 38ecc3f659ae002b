"""Content-addressed results under `DIR/.cache`: a stopped run resumes, variants with a common prefix share work.

An entry is a JSON record (what was measured, which blobs) under the key of the step, and blobs under their own
SHA-256. Everything read is checked against its digest; what does not fit is as good as absent, and is made again.
Nothing in here is ever executed: modules are kept as tensors and plain attributes (see structure).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from edgepress_protocol.errors import Unavailable

from edgepress_host import durable

FORMAT = 1
"""Changes when the meaning of an entry does; older entries are then never found."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Entry(msgspec.Struct, frozen=True):
    """A cached result: plain facts, and bytes by name."""

    facts: dict[str, Any]
    blobs: dict[str, bytes]


class _Record(msgspec.Struct, frozen=True):
    facts: dict[str, Any]
    blobs: dict[str, str]
    check: str
    """SHA-256 of facts and blobs as encoded: a half-written or altered record is not believed."""


class Store:
    """Results by key. The same bytes are kept once."""

    def __init__(self, folder: Path) -> None:
        self._keys = folder / "keys"
        self._blobs = folder / "blobs"
        with disk(folder):
            for path in (self._keys, self._blobs):
                path.mkdir(parents=True, exist_ok=True)

    def fetch(self, key: str) -> Entry | None:
        """Return the entry, or None where it is absent or damaged. Raises Unavailable."""
        try:
            record = msgspec.json.decode(self._read(self._keys / f"{key}.json"), type=_Record)
            if record.check != _check(record.facts, record.blobs):
                return None
            blobs = {name: self._blob(sha256) for name, sha256 in record.blobs.items()}
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, _Damaged):
            return None
        return Entry(record.facts, blobs)

    def keep(self, key: str, facts: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Entry:
        """Write an entry, blobs first, each file atomically. Raises Unavailable."""
        names = {}
        for name, content in blobs.items():
            names[name] = hashlib.sha256(content).hexdigest()
            write_atomically(self._blobs / names[name], content)
        plain = msgspec.to_builtins(dict(facts))
        record = _Record(facts=plain, blobs=names, check=_check(plain, names))
        write_atomically(self._keys / f"{key}.json", msgspec.json.encode(record))
        return Entry(plain, dict(blobs))

    def _blob(self, sha256: str) -> bytes:
        content = self._read(self._blobs / Path(sha256).name)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise _Damaged
        return content

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unavailable(f"{path}: cannot read the cache ({error.strerror})") from error


class _Damaged(Exception):  # noqa: N818 - names the state of a blob
    pass


def key_of(*parts: object) -> str:
    """SHA-256 over plain values; equal values give equal keys on every machine."""
    return hashlib.sha256(msgspec.json.encode([FORMAT, *parts], order="sorted")).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, fsync, replace, fsync the folder: a reader sees the old file or the new one. Raises Unavailable."""
    with disk(path):
        durable.write(path, content)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into one line. Raises Unavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Unavailable(
                f"{path.parent}: the disk is full ({error.strerror}); free some space and run the same command again, "
                "finished steps are kept"
            ) from error
        raise Unavailable(f"{path}: cannot write ({error.strerror})") from error


def no_space(error: BaseException | None) -> bool:
    """Tell whether an exception, or one behind it, is a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def _check(facts: Mapping[str, Any], blobs: Mapping[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode([facts, blobs], order="sorted")).hexdigest()
