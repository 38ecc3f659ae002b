"""The encoding side: cut a file at its tensors, try the layouts on each, and keep the smallest."""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Iterator

from edgepress_protocol.container import spans
from edgepress_protocol.container.costs import Option, budget_us, decode_us, head_us, within
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

_FREE_NONZEROS = 512
"""So few are tried in any case."""

_GAP_BYTES = 13
"""Output that a nonzero in `gaps` must bring to be tried: writing takes a second for a million of them."""

_BLOCK_US = 0.5
"""About what a nonzero in `blocks` takes a reader."""


def encode(data: bytes, level: int = 19) -> bytes:
    """Return the container of a file: any bytes, though it pays only where tensors are found. `level` is zstd's."""
    budget = budget_us(len(data)) - head_us(len(data))
    stretches = list(_pieces(data))
    tried = [list(_options(data[span.start : span.start + span.length], span, level, budget)) for span in stretches]
    raw, pool, payloads = bytearray(), bytearray(), []
    segments: list[Segment] = []
    at = 0
    for span, option in zip(stretches, within(budget, tried), strict=True):
        if option.layout is None:
            continue
        stretch = data[span.start : span.start + span.length]
        payload = b"" if option.payload is None else _again(option.layout, stretch, span.size, level, option.payload)
        segments.append(Segment(span.start - at, option.layout, span.size, span.length, len(payload)))
        raw += data[at : span.start]
        at = span.start + span.length
        if option.payload is None:
            pool += stretch
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


def _options(data: bytes, span: Span, level: int, budget: float) -> Iterator[Option]:
    """Try the layouts that suit what a stretch holds."""
    size, width, first = span.size, span.width, _first(data, level)
    plain: list[tuple[Layout, bytes]] = [("bytes", deflate(data, first))]
    if size > 1:
        plain.append(("planes", deflate_planes(data, size, first)))
    pooled, short = size == 4 and len(data) <= POOLED_BYTES, len(data) <= _AMONG_GRAPH_BYTES
    if pooled:
        least = min(len(payload) for _, payload in plain)
        yield Option("pooled", None, least, decode_us("pooled", b"", len(data), size))
    if len(data) <= POOLED_BYTES:
        frame_bytes = len(plain[0][1])
        yield Option(None, None, frame_bytes if short else frame_bytes * 9 // 8, 0.0015 * len(data))
    found = [] if pooled else plain[short:]
    nonzeros = _nonzeros(data, size)
    if nonzeros is not None:
        if size > 1 and (book := write_book(data, size, first)) is not None:
            found.append(("book", book))
        found += _sparse(data, size, width, level, nonzeros, budget, len(data))
    if size > 1 and (rows := write_rows(data, size, width)) is not None:
        tables, indices = rows
        hidden = len(indices) - indices.count(0)
        inner = [("bytes", deflate(indices, first)), *_sparse(indices, 1, width, level, hidden, budget, len(data))]
        found += [("rows", tables + bytes([LAYOUTS.index(one)]) + payload) for one, payload in inner]
    for layout, payload in found:
        yield Option(layout, payload, len(payload), decode_us(layout, payload, len(data), size))


def _sparse(
    data: bytes, size: int, width: int, level: int, nonzeros: int, budget: float, output_bytes: int
) -> Iterator[tuple[Layout, bytes]]:
    """Try the layouts that leave the most common value out, as far as a reader can keep up."""
    elements = len(data) // size
    if nonzeros <= max(output_bytes // _GAP_BYTES, _FREE_NONZEROS):
        yield "gaps", write_sparse(data, size, level, width, blocks=False)
    decisions = nonzeros + width + elements // width
    if nonzeros <= min(budget / _BLOCK_US, elements // 2) and decisions * EVERY_BYTES <= output_bytes + FREE_BYTES:
        yield "blocks", write_sparse(data, size, level, width, blocks=True)


def _first(data: bytes, level: int) -> int:
    """Return the level to choose layouts with: thorough only where it costs little."""
    return level if len(data) <= _SHORT_BYTES else min(level, _QUICK)


def _again(layout: Layout, data: bytes, size: int, level: int, payload: bytes) -> bytes:
    """Compress the chosen layout as far as it goes; mantissas do not go far, and are left as they are."""
    better = None
    if _first(data, level) == level:
        return payload
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
