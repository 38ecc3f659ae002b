"""The decoding side, and the form itself: a header, the graph's bytes, and a segment for each tensor.

    "EPC" version(1 byte)   CRC-32 of the file (u32, little-endian)
    size of the file, of the table, of the raw bytes, of the pool; lengths of the head's and the pool's frame: varints
    head:   zstd, under a dictionary that is part of the format, of the table and then the raw bytes
    pool:   zstd of the byte planes of all short float tensors, end to end
    the payload of each segment that has one

The table has, for each segment: how many raw bytes come before it, its layout and the size of its elements, their
number, and the length of its payload. A reader needs no more than this: neither ONNX nor TFLite.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import count

import msgspec

from edgepress_protocol.container import layouts
from edgepress_protocol.container.dictionary import DICTIONARY
from edgepress_protocol.container.layouts import LAYOUTS, MAX_SEGMENT_BYTES, Layout
from edgepress_protocol.container.pieces import (
    Cursor,
    deflate,
    deflate_planes,
    from_planes,
    inflate,
    read_varint,
    varint,
)
from edgepress_protocol.errors import Rejected

MAGIC = b"EPC\x01"
MAX_HEAD_BYTES = 1 << 24
"""Table and raw bytes are held whole; an encoder leaves files with more of them to plain zstd."""

MAX_SEGMENTS = 1 << 16
_MAX_SIZE = 1 << 32
_SLACK_BYTES = 1 << 10
_FIXED = 8


class Segment(msgspec.Struct, frozen=True):
    """`raw_bytes` of the head, then `size_bytes` that `payload_bytes` expand to, in elements of `size` bytes."""

    raw_bytes: int
    layout: Layout
    size: int
    size_bytes: int
    payload_bytes: int


class Header(msgspec.Struct, frozen=True):
    """What the file is, and its segments in order."""

    size_bytes: int
    crc32: int
    segments: tuple[Segment, ...]

    def write(self, raw: bytes, pool: bytes, level: int) -> bytes:
        """Write everything that comes before the payloads."""
        table = bytearray()
        for segment in self.segments:
            kind = LAYOUTS.index(segment.layout) << 2 | segment.size.bit_length() - 1
            table += varint(segment.raw_bytes) + bytes([kind]) + varint(segment.size_bytes // segment.size)
            table += varint(segment.payload_bytes)
        head = deflate(bytes(table) + raw, level, DICTIONARY)
        shared = deflate_planes(pool, 4, level) if pool else b""
        sizes = (self.size_bytes, len(table), len(raw), len(pool), len(head), len(shared))
        return MAGIC + self.crc32.to_bytes(4, "little") + b"".join(map(varint, sizes)) + head + shared


def declared_bytes(container: bytes) -> int:
    """Size of the file that a container says it holds.

    Raises:
        Rejected: it is no container.
    """
    return _opened(Cursor(container[:_FIXED]), Cursor(container[_FIXED : _FIXED + 10]))[1]


def decode(wire: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """Expand a container, segment by segment, to exactly `size_bytes` bytes.

    Raises:
        Rejected: it is damaged, or holds another size than was declared; never after more bytes than were declared.
    """
    source = _Source(wire)
    header, raw, pool = _read_head(source, size_bytes)
    crc = 0
    for piece in _expanded(source, header, raw, pool):
        crc = zlib.crc32(piece, crc)
        yield piece
    if source.more():
        raise Rejected("container: bytes after its end")
    if crc != header.crc32:
        raise Rejected("container: the CRC-32 of what it expands to differs")


def read_header(container: bytes) -> Header:
    """Read what a container holds without expanding it.

    Raises:
        Rejected: it is damaged.
    """
    return _read_head(_Source([container]), declared_bytes(container))[0]


def _expanded(source: _Source, header: Header, raw: Cursor, pool: Cursor) -> Iterator[bytes]:
    for segment in header.segments:
        if segment.raw_bytes:
            yield raw.take(segment.raw_bytes)
        if segment.layout == "pooled":
            yield pool.take(segment.size_bytes)
        else:
            payload = source.take(segment.payload_bytes)
            yield bytes(layouts.read(segment.layout, payload, segment.size_bytes, segment.size))
    if raw.left:
        yield raw.rest()


def _opened(fixed: Cursor, numbers: Cursor | _Source) -> tuple[int, int]:
    if fixed.take(4) != MAGIC:
        raise Rejected("container: this is none, or one of a version that this edition does not read")
    return int.from_bytes(fixed.take(4), "little"), numbers.varint(_MAX_SIZE)


def _read_head(source: _Source, size_bytes: int) -> tuple[Header, Cursor, Cursor]:
    crc, held = _opened(Cursor(source.take(_FIXED)), source)
    if held != size_bytes:
        raise Rejected(f"file expands to {held} bytes, its manifest declares {size_bytes}")
    table_bytes, raw_bytes, pool_bytes = (source.varint(most) for most in (MAX_HEAD_BYTES, size_bytes, size_bytes))
    if max(table_bytes + raw_bytes, pool_bytes) > MAX_HEAD_BYTES:
        raise Rejected(f"container: a head of more than {MAX_HEAD_BYTES} bytes")
    head_bytes = source.varint(table_bytes + raw_bytes + _SLACK_BYTES)
    pool_wire_bytes = source.varint(pool_bytes + _SLACK_BYTES)
    head = inflate(source.take(head_bytes), table_bytes + raw_bytes, DICTIONARY)
    pool = bytes(from_planes(inflate(source.take(pool_wire_bytes), pool_bytes), 4)) if pool_bytes else b""
    segments = tuple(_segments(Cursor(head[:table_bytes]), size_bytes))
    pooled = sum(segment.size_bytes for segment in segments if segment.layout == "pooled")
    expanded = sum(segment.size_bytes for segment in segments)
    if expanded + raw_bytes != size_bytes or pooled != pool_bytes or pool_bytes % 4:
        raise Rejected("container: its segments do not add up to the file")
    return Header(size_bytes, crc, segments), Cursor(head[table_bytes:]), Cursor(pool)


def _segments(table: Cursor, size_bytes: int) -> Iterator[Segment]:
    for number in count():
        if not table.left:
            return
        if number == MAX_SEGMENTS:
            raise Rejected(f"container: more than {MAX_SEGMENTS} segments")
        raw_bytes, kind = table.varint(size_bytes), table.byte()
        size, elements = 1 << (kind & 3), table.varint(MAX_SEGMENT_BYTES)
        if kind >> 2 >= len(LAYOUTS) or not 0 < elements * size <= MAX_SEGMENT_BYTES:
            raise Rejected("container: a segment of unknown layout or size")
        payload_bytes = table.varint(elements * size + _SLACK_BYTES)
        yield Segment(raw_bytes, LAYOUTS[kind >> 2], size, elements * size, payload_bytes)


class _Source:
    """Reads pieces of any length as one stream."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """Read exactly `count` bytes.

        Raises:
            Rejected: there are fewer.
        """
        taken = [self._some(count)]
        missing = count - len(taken[0])
        while missing:
            piece = next(self._pieces, None)
            if piece is None:
                raise Rejected(f"container: cut short, {missing} bytes are missing")
            self._piece, self._at = piece, 0
            taken.append(self._some(missing))
            missing -= len(taken[-1])
        return b"".join(taken)

    def varint(self, most: int) -> int:
        """Read a whole number of at most `most`."""
        return read_varint(lambda: self.take(1)[0], most)

    def more(self) -> bool:
        """Tell whether anything is left."""
        return self._at < len(self._piece) or any(self._pieces)

    def _some(self, most: int) -> bytes:
        some = self._piece[self._at : self._at + most]
        self._at += len(some)
        return some
