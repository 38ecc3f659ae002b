"""Wire forms of a file: as it is, zstd, byte-shuffled by four and then zstd, or the edgepress container.

Everything streams in pieces of a few MiB, so that a board expands a large model in little memory; nothing expands
beyond the size that the signed manifest declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, cast, get_args

import zstandard

from edgepress_protocol import container
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Codec
from edgepress_protocol.version import SPOKEN

BLOCK_BYTES = 1 << 20

THOROUGH_BYTES = 8 << 20
"""Files up to this size are compressed as far as zstd goes in every form; larger ones as plain zstd alone."""

MADE_BY = (__name__, *(f"{container.__name__}.{part}" for part in container.PARTS))
"""Modules that decide how large a wire form is, for whoever keeps sizes."""

_CODECS: tuple[Codec, ...] = get_args(Codec)
_THOROUGH, _QUICK = 19, 9
_MAX_WINDOW_BYTES = 1 << 27


def best(data: bytes, protocol: int = SPOKEN[1]) -> tuple[Codec, bytes]:
    """Return the smallest wire form of `data` for readers of a protocol version, with its codec.

    It is never larger than the file, nor than zstd -19 makes it, which is always tried: a third of a second a megabyte,
    once for a file, for the form is kept.
    """
    levels: dict[Codec, int] = {"zstd": _THOROUGH, "container": _QUICK if len(data) > THOROUGH_BYTES else _THOROUGH}
    found = [(codec, encode(codec, data, levels.get(codec, _QUICK))) for codec in read_by(protocol)]
    codec, form = min(found, key=_size)
    if codec == "shuffle4-zstd" and len(data) <= THOROUGH_BYTES:
        form = min(form, encode(codec, data), key=len)
    return codec, form


def read_by(protocol: int) -> tuple[Codec, ...]:
    """Return the codecs that every agent reads which speaks this protocol version.

    >>> read_by(1)
    ('none', 'zstd', 'shuffle4-zstd')
    """
    return _CODECS if protocol >= 2 else _CODECS[:-1]


def encode(codec: Codec, data: bytes, level: int = _THOROUGH) -> bytes:
    """Return the wire form of `data` under `codec`; `level` is zstd's."""
    match codec:
        case "none":
            return data
        case "container":
            return container.encode(data, level)
        case "zstd":
            return zstandard.ZstdCompressor(level=level).compress(data)
        case "shuffle4-zstd":
            shuffled = b"".join(_shuffle(block) for block in _blocks(data))
            return zstandard.ZstdCompressor(level=level).compress(shuffled)


def _size(found: tuple[Codec, bytes]) -> int:
    return len(found[1])


def decode(codec: Codec, wire: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """Expand a wire form, piece by piece, to exactly `size_bytes` bytes.

    Raises:
        Rejected: it is damaged, or expands to more or less than was declared.
    """
    if codec == "container":
        yield from container.decode(wire, size_bytes)
        return
    expanded = wire if codec == "none" else _inflate(wire, size_bytes)
    produced = 0
    for piece in _unshuffled(expanded) if codec == "shuffle4-zstd" else expanded:
        produced += len(piece)
        if produced > size_bytes:
            raise Rejected(f"file expands beyond the {size_bytes} bytes that its manifest declares")
        yield piece
    if produced != size_bytes:
        raise Rejected(f"file expands to {produced} bytes, its manifest declares {size_bytes}")


def _inflate(wire: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    source = cast("IO[bytes]", _Source(wire))
    reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(source)
    produced = 0
    try:
        # One byte past the declared size is enough to tell that a stream lies about it.
        while produced <= size_bytes and (piece := reader.read(min(BLOCK_BYTES, size_bytes + 1 - produced))):
            produced += len(piece)
            yield piece
    except zstandard.ZstdError as error:
        raise Rejected(f"damaged zstd stream: {error}") from error


def _unshuffled(pieces: Iterable[bytes]) -> Iterator[bytes]:
    pending = bytearray()
    for piece in pieces:
        pending += piece
        while len(pending) >= BLOCK_BYTES:
            yield _unshuffle(bytes(pending[:BLOCK_BYTES]))
            del pending[:BLOCK_BYTES]
    if pending:
        yield _unshuffle(bytes(pending))


def _blocks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES]


def _shuffle(block: bytes) -> bytes:
    return b"".join(block[lane::4] for lane in range(4))


def _unshuffle(block: bytes) -> bytes:
    out = bytearray(len(block))
    start = 0
    for lane in range(4):
        length = len(range(lane, len(block), 4))
        out[lane::4] = block[start : start + length]
        start += length
    return bytes(out)


class _Source:
    """The reading side of a file over an iterable of pieces, as zstandard wants it."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        taken = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        return taken
