"""Files at rest as they travel: an edgepress container, or zstd where that is smaller."""

from __future__ import annotations

import msgspec
import zstandard
from edgepress_protocol import container
from edgepress_protocol.container import spans
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import MAX_BLOB_BYTES

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Part(msgspec.Struct, frozen=True):
    """One stretch of a file: what the file calls it, its bytes, how it is laid out, and the bytes that this takes.

    `packed_bytes` is None for what shares a frame with others (short floats, the graph): the last rows hold the sums.
    """

    name: str
    offset: int
    bytes: int
    layout: str
    packed_bytes: int | None


class Packed(msgspec.Struct, frozen=True):
    """A packed file, and what it holds; a file that is plain zstd has no parts."""

    form: str
    content: bytes
    parts: tuple[Part, ...]


def pack(data: bytes) -> Packed:
    """Pack a file; the result is never larger than zstd -19 with its checksum makes it."""
    packed = container.encode(data)
    plain = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(data)
    if len(plain) < len(packed):
        return Packed("zstd", plain, ())
    return Packed("container", packed, _parts(data, packed))


def unpack(content: bytes) -> bytes:
    """Return the file that was packed.

    Raises:
        Rejected: it is no packed file, or damaged.
    """
    if content.startswith(_ZSTD_MAGIC):
        try:
            size_bytes = zstandard.frame_content_size(content)
            if not 0 <= size_bytes <= MAX_BLOB_BYTES:
                raise Rejected("the zstd frame does not say how large the file is, or too large")
            return zstandard.ZstdDecompressor().decompress(content)
        except zstandard.ZstdError as error:
            raise Rejected(f"damaged zstd frame: {error}") from error
    return b"".join(container.decode([content], container.declared_bytes(content)))


def _parts(data: bytes, packed: bytes) -> tuple[Part, ...]:
    names = {span.start: span.name for span in spans.find(data)}
    found, at, name = [], 0, ""
    segments = container.read_header(packed).segments
    for segment in segments:
        at += segment.raw_bytes
        name = names.get(at, f"{name.removesuffix(' …')} …")
        payload = None if segment.layout == "pooled" else segment.payload_bytes
        found.append(Part(name, at, segment.size_bytes, segment.layout, payload))
        at += segment.size_bytes
    rest = len(data) - sum(segment.size_bytes for segment in segments)
    shared = len(packed) - sum(segment.payload_bytes for segment in segments)
    return (*found, Part("graph, short floats, table", 0, rest, "shared", shared))
