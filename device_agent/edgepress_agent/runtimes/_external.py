"""Tensors that an ONNX file keeps in other files: a variant is one file, and may not make a board read another.

Source: the messages of onnx.proto3 and the encoding of protocol buffers. ONNX Runtime itself follows such references,
older ones anywhere on the disk.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_KEY = b"location"
"""Every reference names its file under this key, so that a file without these bytes has none."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BITS = 70
_DATA_LOCATION, _EXTERNAL_DATA = 14, 13
_EXTERNAL = 1
_DEEPEST = 100
"""Deeper messages no parser of protocol buffers reads."""

# Message → its fields that may hold a tensor, and the messages that they are.
_HOLDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def first_outside(path: Path) -> str | None:
    """Return the first other file that an ONNX file refers to, as it is written there; None where it has none."""
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(_KEY) < 0:
            return None
    return next(iter(references(path.read_bytes())), None)


def references(data: bytes) -> list[str]:
    """Return all other files that the bytes of an ONNX file refer to."""
    return list(_references(memoryview(data)))


def _references(data: memoryview) -> Iterator[str]:
    waiting = [("model", data, 0)]
    while waiting:
        kind, message, depth = waiting.pop()
        if kind == "tensor":
            yield from _of_tensor(message)
            continue
        holds = _HOLDS[kind]
        for field, value in _fields(message):
            if field in holds and isinstance(value, memoryview) and depth < _DEEPEST:
                waiting.append((holds[field], value, depth + 1))


def _of_tensor(message: memoryview) -> Iterator[str]:
    outside, named = False, ""
    for field, value in _fields(message):
        if field == _DATA_LOCATION:
            outside = value == _EXTERNAL
        elif field == _EXTERNAL_DATA and isinstance(value, memoryview):
            entry = {number: bytes(text) for number, text in _fields(value) if isinstance(text, memoryview)}
            if entry.get(1) == _KEY:
                named = entry.get(2, b"").decode(errors="replace")
    if outside:
        yield named


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a message, numbers or bytes; what is no message ends early, and the runtime refuses it."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire_type == _BYTES:
            length, at = _varint(message, at)
            yield number, message[at : at + length]
            at += length
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            return


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift >= _VARINT_BITS:
            break
    return value, at
