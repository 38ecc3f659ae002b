"""The encoding side: cut a file at its tensors, try the layouts on each, and keep the smallest."""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from edgepress_protocol.container import spans
from edgepress_protocol.container.layouts import (
    EVERY_BYTES,
    FREE_BYTES,
    LAYOUTS,
    MAX_SEGMENT_BYTES,
    Layout,
    write_book,
    write_rows,
    write_sparse,
)
from edgepress_protocol.container.pieces import TYPECODES, deflate, deflate_planes
from edgepress_protocol.container.reader import Header, Segment
from edgepress_protocol.container.spans import Span

POOLED_BYTES = 1 << 14
"""Floats below this (biases, scales) share one frame."""

_AMONG_GRAPH_BYTES = 512
"""Integers below this (shapes, axes) stay with the graph, whose dictionary knows them."""

_LONG_BYTES = 1 << 16
_SHORT_BYTES = 1 << 17
"""Up to here every layout is tried as thoroughly as it could be taken."""

_QUICK = 9
_SAMPLE = 4096
_SPARSE_ENOUGH = 0.25

_BLOCK_BYTES = 150
"""Output that a nonzero in `blocks` must bring, so that a file decodes at 100 MB/s: each takes .9 µs."""

_GAP_BYTES = 13
"""The same of one in `gaps`, at .12 µs."""

_FREE_NONZEROS = 512
"""So many cost nothing that anybody would notice."""

_MODELS = 300
"""What the models of a segment in `blocks` take to lay out, in nonzeros."""


@dataclass
class _Allowance:
    """Nonzeros that may still be laid out in `blocks`, over the whole file."""

    nonzeros: int


def encode(data: bytes, level: int = 19) -> bytes:
    """Return the container of a file: any bytes, though it pays only where tensors are found. `level` is zstd's."""
    allowance = _Allowance(len(data) // _BLOCK_BYTES + _FREE_NONZEROS)
    raw, pool, payloads = bytearray(), bytearray(), []
    segments: list[Segment] = []
    at = 0
    for span in _pieces(data):
        stretch = data[span.start : span.start + span.length]
        layout, payload = _laid_out(stretch, span, level, allowance)
        if layout == "bytes" and len(stretch) <= _AMONG_GRAPH_BYTES:
            continue
        segments.append(Segment(span.start - at, layout, span.size, span.length, len(payload)))
        raw += data[at : span.start]
        at = span.start + span.length
        if layout == "pooled":
            pool += stretch
        else:
            payloads.append(payload)
    raw += data[at:]
    header = Header(len(data), zlib.crc32(data), tuple(segments))
    return header.write(bytes(raw), bytes(pool), level) + b"".join(payloads)


def _pieces(data: bytes) -> Iterator[Span]:
    """Cut long tensors at their rows; what lies between them and is long is cut too, so that no head is."""
    at = 0
    for span in (*spans.find(data), Span(len(data), 0, 1, 1)):
        if span.start - at > _LONG_BYTES:
            yield from _cut(Span(at, span.start - at, 1, span.start - at))
        yield from _cut(span)
        at = span.start + span.length


def _cut(span: Span) -> Iterator[Span]:
    row = span.width * span.size
    most = MAX_SEGMENT_BYTES // row * row or MAX_SEGMENT_BYTES
    for start in range(0, span.length, most):
        length = min(most, span.length - start)
        width = span.width if length % row == 0 else length // span.size
        yield Span(span.start + start, length, span.size, width)


def _laid_out(data: bytes, span: Span, level: int, allowance: _Allowance) -> tuple[Layout, bytes]:
    """Choose a layout: the smallest of those that suit what the stretch holds."""
    size, first = span.size, level if len(data) <= _SHORT_BYTES else min(level, _QUICK)
    found: dict[Layout, bytes] = {"bytes": deflate(data, first)}
    if size > 1:
        found["planes"] = deflate_planes(data, size, first)
    nonzeros = _nonzeros(data, size)
    if nonzeros is not None:
        if size > 1 and (book := write_book(data, size, first)) is not None:
            found["book"] = book
        found |= _sparse(data, size, span.width, level, nonzeros, allowance, len(data))
    if size > 1 and (rows := write_rows(data, size, span.width)) is not None:
        tables, indices = rows
        hidden = len(indices) - indices.count(0)
        inner: dict[Layout, bytes] = {"bytes": deflate(indices, first)}
        inner |= _sparse(indices, 1, span.width, level, hidden, allowance, len(data))
        best = min(inner, key=lambda one: len(inner[one]))
        found["rows"] = tables + bytes([LAYOUTS.index(best)]) + inner[best]
        nonzeros = hidden if best == "blocks" else None
    layout = min(found, key=lambda one: len(found[one]))
    if layout in {"blocks", "rows"} and nonzeros is not None:
        allowance.nonzeros -= nonzeros + _MODELS
    if size == 4 and layout in {"bytes", "planes"} and len(data) <= POOLED_BYTES:
        return "pooled", b""
    return layout, _again(layout, data, size, level, found[layout]) if first != level else found[layout]


def _sparse(
    data: bytes, size: int, width: int, level: int, nonzeros: int, allowance: _Allowance, output_bytes: int
) -> dict[Layout, bytes]:
    """Try the layouts that leave the most common value out, as far as a reader can keep up."""
    found: dict[Layout, bytes] = {}
    if nonzeros <= max(output_bytes // _GAP_BYTES, _FREE_NONZEROS):
        found["gaps"] = write_sparse(data, size, level, width, blocks=False)
    elements = len(data) // size
    decisions = nonzeros + width + elements // width
    if (
        nonzeros <= min(allowance.nonzeros - _MODELS, elements // 2)
        and decisions * EVERY_BYTES <= output_bytes + FREE_BYTES
    ):
        found["blocks"] = write_sparse(data, size, level, width, blocks=True)
    return found


def _again(layout: Layout, data: bytes, size: int, level: int, payload: bytes) -> bytes:
    """Compress the chosen layout as far as it goes; mantissas do not go far, and are left as they are."""
    better = None
    if layout == "bytes":
        better = deflate(data, level)
    elif layout == "book":
        better = write_book(data, size, level)
    return payload if better is None else min(payload, better, key=len)


def _nonzeros(data: bytes, size: int) -> int | None:
    """Count the elements that are not the most common value; None where a sample tells that values hardly repeat."""
    elements = array(TYPECODES[size], data)
    sample = Counter(elements[:: max(1, len(elements) // _SAMPLE)])
    if len(sample) > _SAMPLE // 4 and sample.most_common(1)[0][1] < _SPARSE_ENOUGH * sample.total():
        return None
    return len(elements) - max(Counter(elements).values())
