"""How one stretch of a file is laid out: the kinds of segments, each written and read back.

`bytes`   a frame of zstd of its own: int8 and packed int4, whose statistics are not the graph's.
`planes`  first bytes of all elements together, then the second ones, …: dense floats.
`book`    a table of at most 256 values, and an index per element: clustered weights (weight sharing).
`gaps`    the most common value is left out; the distances to all others, a byte each, under zstd, and their values.
`blocks`  the same, but places by `places` and indices under one entropy-coded stream: closer to the entropy, and
          slower, so that an encoder takes it only where what is expanded is large beside what is decoded.
`rows`    a table for each row (weights shared per channel, or scaled per channel later), and indices into these, a byte
          each, laid out as `bytes`, `gaps` or `blocks`.
`pooled`  short dense floats (biases, scales): all of a file share one frame of planes, which lies before the segments.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, compress
from typing import Literal, get_args

from edgepress_protocol.container.pieces import TYPECODES, Cursor, deflate, deflate_planes, from_planes, inflate, varint
from edgepress_protocol.container.places import Plan, write_places
from edgepress_protocol.container.rans import Reader, from_byte, normalized, to_byte
from edgepress_protocol.errors import Rejected

Layout = Literal["bytes", "planes", "book", "gaps", "blocks", "pooled", "rows"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

MAX_SEGMENT_BYTES = 1 << 22
"""Output of one segment: what a reader holds at a time. Longer tensors are cut."""

MAX_BOOK = 256
_FAR = 255
"""A gap byte that says: as far again, and nothing there."""

_STEPS = bytes([*range(1, 256), _FAR])
_LANDS = bytes([1] * 255 + [0])

EVERY_BYTES = 32
"""`blocks` decodes about a million nonzeros a second; each must bring at least so many bytes of output."""

FREE_BYTES = 1 << 16
"""As if every segment had so many more: what is small may take its time."""


MIN_ROW = 16
"""Rows that have a table of their own are at least so long: each costs a reader a few microseconds."""


def read(layout: Layout, payload: bytes, size_bytes: int, size: int, output_bytes: int = 0) -> bytes | bytearray:
    """Expand a segment of `size_bytes` bytes, in elements of `size` bytes.

    `output_bytes` is what comes of it in the end, where that is more.

    Raises:
        Rejected: it is damaged, or contradicts itself.
    """
    cursor, count = Cursor(payload), size_bytes // size
    match layout:
        case "bytes":
            return inflate(payload, size_bytes)
        case "planes":
            return from_planes(inflate(payload, size_bytes), size)
        case "book":
            book = cursor.take((cursor.byte() + 1) * size)
            return _looked_up(book, size, inflate(cursor.rest(), count))
        case "rows":
            return _read_rows(cursor, count, size)
        case _:
            return _read_sparse(layout, cursor, count, size, max(output_bytes, size_bytes))


def write_book(data: bytes, size: int, level: int) -> bytes | None:
    """Write a table and an index per element; None where there are too many values."""
    elements = _elements(data, size)
    values = sorted(set(elements))
    if not 1 <= len(values) <= MAX_BOOK:
        return None
    index = {value: at for at, value in enumerate(values)}
    book = array(TYPECODES[size], values).tobytes()
    return bytes([len(values) - 1]) + book + deflate(bytes(map(index.__getitem__, elements)), level)


def write_sparse(data: bytes, size: int, level: int, width: int, *, blocks: bool) -> bytes:
    """Write the most common value once, and where the others are and what they are."""
    elements = _elements(data, size)
    fill = Counter(elements).most_common(1)[0][0]
    places = [at for at, value in enumerate(elements) if value != fill]
    values = sorted({elements[at] for at in places})
    if len(values) > MAX_BOOK:
        values = []
    out = [array(TYPECODES[size], [fill]).tobytes(), varint(len(values)), array(TYPECODES[size], values).tobytes()]
    index = {value: at for at, value in enumerate(values)}
    if blocks:
        parameters, writer, order = write_places(places, len(elements), width)
        out.append(parameters)
        if values:
            indices = [index[elements[at]] for at in order]
            found = Counter(indices)
            weights = bytes(to_byte(found[symbol]) for symbol in range(len(values)))
            writer.symbols(normalized([from_byte(weight) for weight in weights]), indices)
            out.append(weights)
        stream = writer.flush()
        out += [varint(len(stream)), stream]
    else:
        order, gaps = places, _gaps(places)
        frame = deflate(gaps, level)
        out += [varint(len(places)), varint(len(gaps)), varint(len(frame)), frame]
        if values:
            out.append(deflate(bytes(index[elements[at]] for at in order), level))
    if places and not values:
        out.append(deflate_planes(array(TYPECODES[size], [elements[at] for at in order]).tobytes(), size, level))
    return b"".join(out)


def write_rows(data: bytes, size: int, width: int) -> tuple[bytes, bytes] | None:
    """Turn elements into indices of their rows' tables; 0 is the most common value, which every table begins with.

    Return the tables, as `rows` begins, and the indices; None where tables would be most of it.
    """
    elements = _elements(data, size)
    height = len(elements) // width
    if width < MIN_ROW or height < 2 or len(elements) % width:
        return None
    fill = Counter(elements[: 16 * width]).most_common(1)[0][0]
    tables, indices = [], bytearray()
    for start in range(0, len(elements), width):
        row = elements[start : start + width]
        table = [fill, *sorted(set(row) - {fill})]
        if len(table) > MAX_BOOK or 2 * len(table) > width:
            return None
        index = {value: at for at, value in enumerate(table)}
        indices += bytes(map(index.__getitem__, row))
        tables.append(table)
    entries = max(map(len, tables))
    flat = array(TYPECODES[size], [value for table in tables for value in (*table, *[fill] * (entries - len(table)))])
    frame = deflate_planes(flat.tobytes(), size, 19)
    return varint(width) + bytes([entries - 1]) + varint(len(frame)) + frame, bytes(indices)


def _read_rows(cursor: Cursor, count: int, size: int) -> bytearray:
    width, entries = cursor.varint(count), cursor.byte() + 1
    if width < MIN_ROW or count % width or entries > width:
        raise Rejected(f"container: rows of {width} do not make up {count} elements")
    table_bytes = entries * size
    tables = from_planes(inflate(cursor.take(cursor.varint(cursor.left)), count // width * table_bytes), size)
    inner = cursor.byte()
    if inner >= len(LAYOUTS) or LAYOUTS[inner] not in {"bytes", "gaps", "blocks"}:
        raise Rejected("container: indices of unknown layout")
    indices = bytes(read(LAYOUTS[inner], cursor.rest(), count, 1, count * size))
    if entries < MAX_BOOK and indices.translate(None, bytes(range(entries))):
        raise Rejected("container: an index past the end of its table")
    rows = [indices[start : start + width] for start in range(0, count, width)]
    out, padding = bytearray(count * size), bytes(MAX_BOOK - entries)
    for lane in range(size):
        values = bytes(tables[lane::size])
        own = [values[start : start + entries] + padding for start in range(0, len(values), entries)]
        out[lane::size] = b"".join(map(bytes.translate, rows, own))
    return out


def _read_sparse(layout: Layout, cursor: Cursor, count: int, size: int, output_bytes: int) -> bytes:
    fill = cursor.take(size)
    distinct = cursor.varint(MAX_BOOK)
    book = _elements(cursor.take(distinct * size), size)
    places: Sequence[int]
    indices: Iterable[int] = ()
    if layout == "blocks":
        plan = Plan(cursor, count)
        if plan.decisions * EVERY_BYTES > output_bytes + FREE_BYTES:
            raise Rejected(f"container: {plan.count} nonzeros in {output_bytes} bytes would take too long")
        weights = cursor.take(distinct)
        reader = Reader(cursor.take(cursor.varint(cursor.left)))
        places = plan.read(reader)
        if distinct and places:
            indices = reader.symbols(normalized([from_byte(weight) for weight in weights]), len(places))
        reader.close()
    else:
        nonzeros, steps = cursor.varint(count), cursor.varint(count)
        gaps = inflate(cursor.take(cursor.varint(cursor.left)), steps)
        places = _places(gaps)
        if len(places) != nonzeros or (places and places[-1] >= count):
            raise Rejected("container: gaps do not lead to the nonzeros that are declared")
        if distinct:
            indices = inflate(cursor.rest(), nonzeros) if nonzeros else b""
    if distinct:
        try:
            values: Iterable[int] = map(book.__getitem__, indices)
            return _scattered(fill, count, size, places, values)
        except IndexError:
            raise Rejected("container: an index past the end of its table") from None
    planes = inflate(cursor.rest(), len(places) * size) if places else b""
    return _scattered(fill, count, size, places, _elements(from_planes(planes, size), size))


def _places(gaps: bytes) -> list[int]:
    """Add gaps up; those that only say "as far again" lead nowhere."""
    steps = accumulate(gaps.translate(_STEPS), initial=-1)
    next(steps)
    return list(compress(steps, gaps.translate(_LANDS)) if _FAR in gaps else steps)


def _scattered(fill: bytes, count: int, size: int, places: Iterable[int], values: Iterable[int]) -> bytes:
    out = bytearray(fill * count) if size == 1 else _elements(fill * count, size)  # half as slow
    for place, value in zip(places, values, strict=True):
        out[place] = value
    return bytes(out)


def _looked_up(book: bytes, size: int, indices: bytes) -> bytearray:
    """Turn indices into values, a lane of bytes at a time."""
    known = len(book) // size
    if known < MAX_BOOK and indices.translate(None, bytes(range(known))):
        raise Rejected("container: an index past the end of its table")
    out = bytearray(len(indices) * size)
    for lane in range(size):
        out[lane::size] = indices.translate(book[lane::size].ljust(MAX_BOOK, b"\0"))
    return out


def _gaps(places: Sequence[int]) -> bytes:
    out, before = bytearray(), -1
    for place in places:
        far, near = divmod(place - before - 1, _FAR)
        if far:
            out += b"\xff" * far
        out.append(near)
        before = place
    return bytes(out)


def _elements(data: bytes | bytearray, size: int) -> array[int]:
    return array(TYPECODES[size], bytes(data))
