"""Pure transfer logic: cut a file into chunks, frame them, and keep count of what is missing.

A frame on `blob/<sha256>` or `chunk` is 16 bytes of header and the chunk:
version (u8), flags (u8, 0), two bytes 0, the first 4 bytes of the wire digest, index (u32), length (u32), big-endian.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edgepress_protocol.codec import best
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import CHUNK_BYTES, Blob, Wire, digest
from edgepress_protocol.version import SPOKEN

FRAME_VERSION = 1
_HEADER = struct.Struct(">BBxx4sII")
HEADER_BYTES = _HEADER.size


def describe(data: bytes, chunk_bytes: int = CHUNK_BYTES, protocol: int = SPOKEN[1]) -> tuple[Blob, bytes]:
    """Return the blob that a file is, and its wire form for agents that speak at least a protocol version."""
    codec, form = best(data, protocol)
    chunks = tuple(hashlib.sha256(chunk).digest() for chunk in split(form, chunk_bytes))
    wire = Wire(codec, digest(form), len(form), chunk_bytes, chunks)
    return Blob(digest(data), len(data), wire), form


def split(data: bytes, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Cut `data` into chunks of `chunk_bytes`, the last one shorter."""
    for start in range(0, len(data), chunk_bytes):
        yield data[start : start + chunk_bytes]


@dataclass(frozen=True)
class Frame:
    """One chunk with its place: `prefix` is the first four bytes of the wire digest."""

    prefix: bytes
    index: int
    chunk: bytes


def encode_frame(wire_sha256: str, index: int, chunk: bytes) -> bytes:
    """Frame one chunk."""
    return _HEADER.pack(FRAME_VERSION, 0, bytes.fromhex(wire_sha256[:8]), index, len(chunk)) + chunk


def decode_frame(data: bytes) -> Frame:
    """Take a frame apart.

    Raises:
        Rejected: it is cut short, or of another version.
    """
    if len(data) < HEADER_BYTES:
        raise Rejected(f"chunk frame of {len(data)} bytes: the header alone has {HEADER_BYTES}")
    version, _, prefix, index, length = _HEADER.unpack_from(data)
    if version != FRAME_VERSION:
        raise Rejected(f"chunk frame of version {version}: version {FRAME_VERSION} is read")
    if len(data) - HEADER_BYTES != length:
        raise Rejected(f"chunk frame says {length} bytes and carries {len(data) - HEADER_BYTES}")
    return Frame(prefix, index, data[HEADER_BYTES:])


def check_chunk(wire: Wire, frame: Frame) -> None:
    """Hold one chunk against the manifest.

    Raises:
        Rejected: it is of another blob, out of range, of another length, or its digest differs.
    """
    if frame.prefix.hex() != wire.sha256[:8]:
        raise Rejected(f"chunk of blob {frame.prefix.hex()}…, not of {wire.sha256[:8]}…")
    if frame.index >= len(wire.chunks):
        raise Rejected(f"chunk {frame.index} of a blob that has {len(wire.chunks)}")
    if len(frame.chunk) != wire.chunk_length(frame.index):
        raise Rejected(f"chunk {frame.index} has {len(frame.chunk)} bytes, not {wire.chunk_length(frame.index)}")
    if hashlib.sha256(frame.chunk).digest() != wire.chunks[frame.index]:
        raise Rejected(f"chunk {frame.index} was altered: its SHA-256 is not the manifest's")


def to_bitmap(indexes: Iterable[int], count: int) -> bytes:
    """Pack chunk indexes: bit i is `1 << i % 8` of byte `i // 8`; no index at all packs to no bytes.

    >>> to_bitmap([0, 9], 10).hex()
    '0102'
    """
    bits = bytearray(-(-count // 8))
    for index in indexes:
        bits[index // 8] |= 1 << index % 8
    return bytes(bits) if any(bits) else b""


def from_bitmap(bits: bytes, count: int) -> frozenset[int]:
    """Unpack the indexes that `to_bitmap` packed.

    Raises:
        Rejected: the bitmap is of another length, or names chunks past the last.
    """
    if not bits:
        return frozenset()
    if len(bits) != -(-count // 8):
        raise Rejected(f"bitmap of {len(bits)} bytes for {count} chunks")
    indexes = frozenset(i * 8 + bit for i, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)
    if any(index >= count for index in indexes):
        raise Rejected(f"bitmap names a chunk past the last of {count}")
    return indexes
