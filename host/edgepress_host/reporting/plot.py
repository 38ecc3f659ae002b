"""A small scatter plot as SVG text, for a report that needs no network. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Literal

import msgspec

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 78, 30, 16, 46
LOG_FROM = 6.0
"""An axis whose largest value is this many times its least is drawn logarithmically."""


class Point(msgspec.Struct, frozen=True):
    """A point, with the number that names it in the table beside; `shape` tells the formats apart."""

    x: float
    y: float
    number: int
    title: str
    shape: Literal["circle", "square"] = "circle"
    outcome: Literal["chosen", "front", "lost"] = "lost"
    original: bool = False


class Axis(msgspec.Struct, frozen=True):
    """One axis: its words, and how its numbers are written."""

    label: str
    shown: Callable[[float], str]
    may_be_log: bool = False


def scatter(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Draw the points, and a line through those on the front. Empty text for no points."""
    if not points:
        return ""
    across = _Scale.over([point.x for point in points], x.may_be_log, LEFT, WIDTH - RIGHT)
    up = _Scale.over([point.y for point in points], y.may_be_log, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y.label)} against {escape(x.label)}">',
        *_grid(across, up, x, y),
        _front(points, across, up),
        # The front is drawn last, on top.
        *(_mark(point, across, up) for point in sorted(points, key=lambda p: (p.outcome != "lost", p.number))),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


class _Scale(msgspec.Struct, frozen=True):
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @staticmethod
    def over(values: Sequence[float], may_be_log: bool, start: float, end: float) -> _Scale:
        low, high = min(values), max(values)
        if may_be_log and low > 0 and high / low >= LOG_FROM:
            margin = (high / low) ** 0.08
            return _Scale(low / margin, high * margin, start, end, log=True)
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        # Nothing that starts above 0 is shown with an axis that reaches below it.
        return _Scale(max(low - margin, 0.0) if low >= 0 else low - margin, high + margin, start, end, log=False)

    def at(self, value: float) -> float:
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round numbers within the axis.

        >>> _Scale(0.0, 10.0, 0, 100, log=False).ticks()
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        >>> _Scale(0.3, 40.0, 0, 100, log=True).ticks()
        [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
        """
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            return [mark for mark in marks if self.low <= mark <= self.high]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [round(count * step, 12) for count in range(first, math.floor(self.high / step) + 1)]


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in across.ticks():
        at = across.at(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(x.shown(value))}</text>')
    for value in up.ticks():
        at = up.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 3.5:.1f}" text-anchor="end">{escape(y.shown(value))}</text>')
    middle = (LEFT + right) / 2
    label = f"{x.label}, logarithmic" if across.log else x.label
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>')
    height = (TOP + bottom) / 2
    turned = f'transform="translate(13 {height}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="label" {turned}>{escape(y.label)}</text>')
    return parts


def _front(points: Sequence[Point], across: _Scale, up: _Scale) -> str:
    """Draw the stairs through the points of the front that no other one beats in both of this plot's values."""
    best: list[Point] = []
    for point in sorted((p for p in points if p.outcome != "lost"), key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    if len(best) < 2:
        return ""
    corners = [(best[0].x, best[0].y)]
    for before, point in itertools.pairwise(best):
        corners += [(point.x, before.y), (point.x, point.y)]
    path = " ".join(f"{across.at(cx):.1f},{up.at(cy):.1f}" for cx, cy in corners)
    return f'<polyline class="front" points="{path}"/>'


def _mark(point: Point, across: _Scale, up: _Scale) -> str:
    cx, cy = across.at(point.x), up.at(point.y)
    kind = f"{point.outcome}{' original' if point.original else ''}"
    radius = 10.5 if point.outcome == "chosen" else 8.5
    if point.shape == "circle":
        body = f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{radius}"/>'
    else:
        side = 1.8 * radius
        body = f'<rect x="{cx - side / 2:.1f}" y="{cy - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}" rx="2"/>'
    number = f'<text x="{cx:.1f}" y="{cy + 3.2:.1f}" text-anchor="middle">{point.number}</text>'
    return f'<g class="mark {kind}"><title>{escape(point.title)}</title>{body}{number}</g>'
