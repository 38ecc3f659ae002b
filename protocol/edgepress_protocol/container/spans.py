"""Where the tensors of a file lie: small readers of ONNX, TFLite and safetensors, for the side that encodes.

They only suggest: any bytes are read without an error, and what they miss or mistake costs size, never a byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import msgspec

SMALLEST_BYTES = 64
"""Tensors below this stay among the graph's bytes."""

_MAX_DEPTH = 16
_MAX_TENSORS = 1 << 16


@dataclass(frozen=True)
class Span:
    """A stretch of a file that holds elements of `size` bytes, `width` to a row, and what the file calls it."""

    start: int
    length: int
    size: int
    width: int
    name: str = ""


def find(data: bytes) -> list[Span]:
    """Return the tensors of a file in order; none where it is of no known format."""
    if data[4:8] == b"TFL3":
        found = _tflite(data)
    elif data[8:9] == b"{":
        found = _safetensors(data)
    else:
        found = _onnx(data)
    spans: list[Span] = []
    end = 0
    for span in sorted(found, key=lambda one: one.start):
        if span.start >= end and span.length >= SMALLEST_BYTES and span.start + span.length <= len(data):
            spans.append(span)
            end = span.start + span.length
    return spans[:_MAX_TENSORS]


def _span(start: int, length: int, size: int, shape: tuple[int, ...], name: bytes) -> Span:
    if length % size:
        size = 1
    count = length // size
    rows = shape[0] if len(shape) > 1 and prod(shape) == count else 1
    return Span(start, length, size, count // rows if rows else count, name.decode(errors="replace"))


# ---- ONNX: protobuf (github.com/onnx/onnx, onnx.proto); only the way to the tensors is walked

_ONNX_SIZES = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}


def _onnx(data: bytes) -> list[Span]:
    return list(_walk(data, "model", 0, len(data), 0))


def _walk(data: bytes, kind: str, start: int, end: int, depth: int) -> Iterator[Span]:
    if kind == "tensor":
        yield from _tensor(data, start, end)
    elif depth < _MAX_DEPTH:
        children = _CHILDREN[kind]
        for number, _, first, last in _fields(data, start, end):
            if number in children and last > first:
                yield from _walk(data, children[number], first, last, depth + 1)


def _tensor(data: bytes, start: int, end: int) -> Iterator[Span]:
    shape: list[int] = []
    type_, raw, name = 0, (0, 0), b""
    for number, value, first, last in _fields(data, start, end):
        if number == 1 and first == last:
            shape.append(value)
        elif number == 1:
            shape += _packed(data, first, last)
        elif number == 2:
            type_ = value
        elif number == 8:
            name = data[first:last]
        elif number == 9:
            raw = first, last
        elif number == 4:
            type_, raw = 1, (first, last)
    if raw[1] - raw[0] >= SMALLEST_BYTES:
        yield _span(raw[0], raw[1] - raw[0], _ONNX_SIZES.get(type_, 1), tuple(shape), name)


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, value, and where the bytes lie (empty for numbers), as far as the message makes sense."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        value, first, last = 0, at, at
        match key & 7:
            case 0:
                value, at = _varint(data, at, end)
                first = last = at
            case 1:
                at += 8
            case 2:
                length, first = _varint(data, at, end)
                last = at = first + length
            case 5:
                at += 4
            case _:
                return
        if at > end or not key >> 3:
            return
        yield key >> 3, value, first, last


def _packed(data: bytes, start: int, end: int) -> Iterator[int]:
    at = start
    while at < end:
        value, at = _varint(data, at, end)
        yield value


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a number; past the end, or of more than ten bytes, it leads out of the message."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            return 0, end + 1
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return 0, end + 1


# ---- TFLite: FlatBuffers (tensorflow/lite/schema/schema.fbs); tables, vectors, and the way to the buffers

_Kind = tuple[int, tuple[int, ...], bytes]
_TFLITE_SIZES = {0: 4, 1: 2, 2: 4, 4: 8, 7: 2, 8: 8, 10: 8, 12: 8, 15: 4, 16: 2, 18: 2}


def _tflite(data: bytes) -> list[Span]:
    try:
        model = _u32(data, 0)
        kinds: dict[int, _Kind] = {}
        for graph in _vector(data, model, 2):
            for tensor in _vector(data, graph, 0):
                shape, type_, buffer, name = (_field(data, tensor, number) for number in (0, 1, 2, 3))
                size = _TFLITE_SIZES.get(data[type_] if type_ else 0, 1)
                kinds[_u32(data, buffer) if buffer else 0] = (size, _shape(data, shape), _text(data, name))
        return list(_buffers(data, model, kinds))
    except (struct.error, IndexError):
        return []


def _buffers(data: bytes, model: int, kinds: dict[int, _Kind]) -> Iterator[Span]:
    for index, buffer in enumerate(_vector(data, model, 4)):
        found = _field(data, buffer, 0)
        if found:
            start = found + _u32(data, found)
            size, shape, name = kinds.get(index, (1, (), b""))
            yield _span(start + 4, _u32(data, start), size, shape, name)


def _shape(data: bytes, found: int) -> tuple[int, ...]:
    if not found:
        return ()
    start = found + _u32(data, found)
    count = _u32(data, start)
    return struct.unpack_from(f"<{count}I", data, start + 4) if count <= 8 else ()


def _text(data: bytes, found: int) -> bytes:
    start = found + _u32(data, found) if found else len(data)
    return data[start + 4 : start + 4 + _u32(data, start)] if found else b""


def _vector(data: bytes, table: int, number: int) -> list[int]:
    """Return where the tables of a vector of tables begin."""
    found = _field(data, table, number)
    if not found:
        return []
    start = found + _u32(data, found)
    count = min(_u32(data, start), _MAX_TENSORS)
    return [start + 4 + 4 * at + _u32(data, start + 4 + 4 * at) for at in range(count)]


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a table lies; 0 where it has its default."""
    virtual = table - struct.unpack_from("<i", data, table)[0]
    if virtual < 0 or 4 + 2 * number >= _u16(data, virtual):
        return 0
    offset = _u16(data, virtual + 4 + 2 * number)
    return table + offset if offset else 0


def _u16(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", data, at)[0])


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


# ---- safetensors: a length, a header in JSON, and the tensors

_SAFETENSORS_SIZES = {
    name: size
    for size, names in {
        2: ("F16", "BF16", "I16", "U16"),
        4: ("F32", "I32", "U32"),
        8: ("F64", "I64", "U64"),
    }.items()
    for name in names
}


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _safetensors(data: bytes) -> list[Span]:
    length = int.from_bytes(data[:8], "little")
    try:
        header = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
        entries = {
            name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items() if name != "__metadata__"
        }
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return []
    return [
        _span(8 + length + first, last - first, _SAFETENSORS_SIZES.get(entry.dtype, 1), entry.shape, name.encode())
        for name, entry in entries.items()
        for first, last in (entry.data_offsets,)
        if 0 <= first < last
    ]
