"""Protocol versions: each side states the range that it speaks, and the highest common one is used."""

from __future__ import annotations

from edgepress_protocol.errors import Rejected

SPOKEN: tuple[int, int] = (1, 2)
"""Lowest and highest protocol version that this edition of edgepress speaks, both included.

1: the first. 2: files may travel as an edgepress container (`codec.read_by` says who reads what).
"""


def negotiate(ours: tuple[int, int], theirs: tuple[int, int]) -> int:
    """Return the highest version in both ranges.

    Raises:
        Rejected: the ranges do not meet; the line says which side to upgrade.

    >>> negotiate((1, 3), (2, 5))
    3
    """
    low, high = max(ours[0], theirs[0]), min(ours[1], theirs[1])
    if low <= high:
        return high
    behind = "the other side" if theirs[1] < ours[0] else "this side"
    raise Rejected(
        f"no common protocol version: this side speaks {_span(ours)}, the other {_span(theirs)};"
        f" upgrade edgepress on {behind}"
    )


def _span(versions: tuple[int, int]) -> str:
    low, high = versions
    return str(low) if low == high else f"{low} to {high}"
