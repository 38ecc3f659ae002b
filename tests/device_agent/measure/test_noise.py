"""A board's noise floor: the ratio of two processes that alternate, told apart though they drift together."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from edgepress_agent.measure import noise
from edgepress_agent.measure.pipe import Open, Opened, Timed, TimeWindows, Warm
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.measurement import Memory, Runtime, Window
from measure_lab import QUICK, Variant


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for processes: b takes 1 ms, a tenth more than that a; all slow down from window to window."""
    turns: list[str] = []

    class Child:
        def __init__(self, name: str) -> None:
            self.name = name

        async def ask(self, question: object, kind: type) -> object:
            if isinstance(question, TimeWindows):
                turns.append(self.name)
                p50_ms = (1.1 if self.name == "a" else 1.0) * 1.01 ** len(turns)
                return Timed((Window(1, 1.0, p50_ms, p50_ms),), Histogram(), 1, 1)
            return {Opened: Opened(Runtime("r", "1", "onnx"), 1, 1, 1), Warm: Warm(1, Memory(1, 1, 1))}[kind]

    @contextlib.asynccontextmanager
    async def worker(folder: Path):
        yield Child(folder.name)

    monkeypatch.setattr(noise, "Worker", worker)
    return turns


def test_a_difference_is_seen_through_a_drift_of_the_board(children: list[str], tmp_path: Path):
    variant = Variant("tiny")
    found = asyncio.run(noise.floor(tmp_path, Open(variant.manifest, str(variant.model)), QUICK, lambda _: None))
    assert found.pairs == 24
    assert found.window_s == QUICK.window_s
    assert found.median == pytest.approx(1.1, rel=0.002), "which one begins must alternate"
    assert (found.low, found.high) == pytest.approx((1.1 / 1.01, 1.1 * 1.01), rel=0.001)
    assert found.low <= found.median_low <= found.median <= found.median_high <= found.high
    assert children[:8] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_the_interval_of_the_median_is_by_order_statistics():
    """Of 24 in order, the 7th and the 18th bound the median with 95 %; nine of ten lie between the 2nd and the 23rd."""
    found = noise.of_ratios([float(i) for i in range(1, 25)], 1.0)
    assert (found.low, found.median, found.high) == (2.0, 12.5, 23.0)
    assert (found.median_low, found.median_high) == (7.0, 18.0)
