"""Small parts that every layout is written in: varints, a cursor that trusts nothing, frames of zstd, byte planes."""

from __future__ import annotations

from collections.abc import Callable

import zstandard

from edgepress_protocol.errors import Rejected

_WINDOW_LOG = 23
WINDOW_BYTES = 1 << _WINDOW_LOG
"""No frame asks a reader for more memory than zstd -19 does."""

_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS
TYPECODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""Elements as `array` holds them, by their size in bytes; bit patterns are moved, never read as numbers."""


def varint(number: int) -> bytes:
    """Write a whole number, seven bits a byte, lowest first.

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(next_byte: Callable[[], int], most: int) -> int:
    """Read a whole number, byte by byte.

    Raises:
        Rejected: it is above `most`.
    """
    number = shift = 0
    while True:
        byte = next_byte()
        number |= (byte & 0x7F) << shift
        shift += 7
        if number > most or shift > 70:
            raise Rejected(f"container: a number above {most}")
        if byte < 0x80:
            return number


class Cursor:
    """Reads a buffer from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Read `count` bytes.

        Raises:
            Rejected: there are fewer.
        """
        if count > self.left:
            raise Rejected(f"container: {count} bytes expected, {self.left} left")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        """Read one byte.

        Raises:
            Rejected: there is none.
        """
        if self._at == len(self._data):
            raise Rejected("container: a byte expected, none left")
        self._at += 1
        return self._data[self._at - 1]

    def varint(self, most: int) -> int:
        """Read a whole number.

        Raises:
            Rejected: it is cut short, or above `most`.
        """
        return read_varint(self.byte, most)

    def rest(self) -> bytes:
        """Read what is left."""
        return self.take(self.left)


def deflate(data: bytes, level: int, dictionary: bytes = b"") -> bytes:
    """Compress to a frame of zstd without what the container knows anyway: magic, length, checksum."""
    return _compressor(len(data), level, dictionary).compress(data)


def deflate_planes(data: bytes, size: int, level: int) -> bytes:
    """Compress the byte planes of elements of `size` bytes: one frame, in which each plane has blocks of its own."""
    stream = _compressor(len(data), level).compressobj()
    parts = []
    for lane in range(size):
        parts += [stream.compress(data[lane::size]), stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*parts, stream.flush()])


def _compressor(size_bytes: int, level: int, dictionary: bytes = b"") -> zstandard.ZstdCompressor:
    shared = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    held = {"source_size": size_bytes, "dict_size": len(dictionary), "format": _FORMAT, "write_content_size": False}
    parameters = zstandard.ZstdCompressionParameters.from_level(level, write_dict_id=False, **held)
    if parameters.window_log > _WINDOW_LOG:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, window_log=_WINDOW_LOG, write_dict_id=False, **held
        )
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=shared)


def inflate(frame: bytes, size_bytes: int, dictionary: bytes = b"") -> bytes:
    """Expand a frame to exactly `size_bytes`; no more than that is ever held.

    Raises:
        Rejected: it is damaged, or of another length.
    """
    shared = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    reader = zstandard.ZstdDecompressor(dict_data=shared, max_window_size=WINDOW_BYTES, format=_FORMAT).stream_reader(
        frame
    )
    try:
        data: bytes = reader.read(size_bytes)
        over = reader.read(1)
    except zstandard.ZstdError as error:
        raise Rejected(f"container: damaged zstd frame: {error}") from error
    if len(data) != size_bytes or over:
        raise Rejected(f"container: a frame does not expand to the {size_bytes} bytes that are declared")
    return data


def from_planes(planes: bytes, size: int) -> bytearray:
    """Put first bytes, second bytes, … of elements back in their places."""
    out, count = bytearray(len(planes)), len(planes) // size
    for lane in range(size):
        out[lane::size] = planes[lane * count : (lane + 1) * count]
    return out
