"""What expanding takes, estimated from the form alone, and the choice of layouts that keeps a file within its budget.

The figures are microseconds of one thread, CPython 3.11, x86-64 at 2 to 3 GHz, fitted to 600 segments (least squares)
of 128 to 128,000 elements. They decide between layouts and need not be exact; `benchmarks/container.py` measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from edgepress_protocol.container.layouts import LAYOUTS, Layout
from edgepress_protocol.container.pieces import Cursor
from edgepress_protocol.container.places import Plan
from edgepress_protocol.container.reader import read_header

BYTES_PER_US = 180
"""What a form must reach by these estimates: 100 MB/s is promised, and a busy machine takes nearly twice as long."""

FREE_US = 300
"""Files below 54 kB may take so long, whatever their size."""

_HEAD_US, _SEGMENT_US = 60.0, 4.0


class Option(NamedTuple):
    """One way to lay out a stretch: `payload` is None where it lies in the head, which takes `wire_bytes` or so."""

    layout: Layout | None
    payload: bytes | None
    wire_bytes: int
    decode_us: float


def budget_us(size_bytes: int) -> float:
    """Time that expanding a file may take.

    >>> budget_us(1_800_000)
    10000.0
    """
    return max(FREE_US, size_bytes / BYTES_PER_US)


def head_us(size_bytes: int) -> float:
    """Time for a file's head and its CRC-32."""
    return _HEAD_US + 0.0003 * size_bytes


def decode_us(layout: Layout, payload: bytes, size_bytes: int, size: int) -> float:
    """Time to expand a segment: its arguments are those of `layouts.read`, of which it reads the parameters alone."""
    cursor, count = Cursor(payload), size_bytes // size
    match layout:
        case "pooled":
            return _SEGMENT_US + 0.0015 * size_bytes
        case "bytes":
            return _SEGMENT_US + 12 + 0.0015 * len(payload)
        case "planes":
            return _SEGMENT_US + 14 + 0.0015 * size_bytes
        case "book":
            return _SEGMENT_US + 14 + 0.0018 * size_bytes
        case "rows":
            height = count // cursor.varint(count)
            cursor.byte()
            cursor.take(cursor.varint(cursor.left))
            inner = decode_us(LAYOUTS[cursor.byte()], cursor.rest(), count, 1)
            return inner + 25 + 0.2 * height * size + 0.0015 * size_bytes
        case "gaps" | "blocks":
            cursor.take(size)
            distinct = cursor.varint(count)
            cursor.take(distinct * size)
            if layout == "gaps":
                nonzeros, steps = cursor.varint(count), cursor.varint(count)
                return _SEGMENT_US + 25 + 0.03 * steps + 0.07 * nonzeros + 0.0001 * size_bytes
            plan = Plan(cursor, count)
            return _SEGMENT_US + 17 + 6 * plan.models + 0.2 * plan.decisions + (0.32 if distinct else 0.12) * plan.count


def form_us(container: bytes) -> float:
    """Time to expand a container.

    Raises:
        Rejected: it is damaged.
    """
    header = read_header(container)
    at = len(container) - sum(segment.payload_bytes for segment in header.segments)
    total = head_us(header.size_bytes)
    for segment in header.segments:
        payload = container[at : at + segment.payload_bytes]
        total += decode_us(segment.layout, payload, segment.size_bytes, segment.size)
        at += segment.payload_bytes
    return total


def within(budget: float, stretches: Sequence[Sequence[Option]]) -> list[Option]:
    """Choose an option for each stretch: the fewest bytes whose times together stay within the budget.

    Beyond the budget it gives up, step by step, what saves the fewest bytes for its time (Shoham and Gersho, 1988).
    """
    falls = [list(_falls(options)) for options in stretches]
    chosen = [options[0] for options in falls]
    spent = sum(option.decode_us for option in chosen)
    steps = sorted(
        (_price(slow, fast), at, to)
        for at, options in enumerate(falls)
        for to, (slow, fast) in enumerate(pairwise(options), start=1)
    )
    for _, at, to in steps:
        if spent <= budget:
            break
        spent += falls[at][to].decode_us - chosen[at].decode_us
        chosen[at] = falls[at][to]
    return chosen


def _falls(options: Sequence[Option]) -> Iterator[Option]:
    """Yield the smallest option, then ever faster ones, each the cheapest way on: the lower convex hull."""
    at = min(options, key=lambda one: (one.wire_bytes, one.decode_us))
    yield at
    while faster := [one for one in options if one.decode_us < at.decode_us]:
        at = min(faster, key=lambda one: (_price(at, one), one.decode_us))
        yield at


def _price(slow: Option, fast: Option) -> float:
    return (fast.wire_bytes - slow.wire_bytes) / (slow.decode_us - fast.decode_us)
