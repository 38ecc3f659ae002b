"""The headline is one timing, whole: its latency, how quiet the board was then, and its state before and after."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from edgepress_agent import sensors
from edgepress_agent.measure import headline
from edgepress_agent.measure.job import Place
from edgepress_agent.measure.pipe import Opened, Timed, TimeWindows, Warm
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.measurement import Memory, Runtime, Window
from measure_lab import QUICK, Lab, Variant

BITS = "sys/devices/platform/soc/soc:firmware/get_throttled"
HEAT = "sys/class/thermal/thermal_zone0/temp"


@pytest.fixture
def board(boards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(boards / "pi4", tmp_path / "board")


class Child:
    """Stands in for a model's process, which answers in these times: ms of each window, for each timing."""

    def __init__(self, *timings: tuple[float, ...]) -> None:
        self.timings = iter(timings)
        self.timed = self.warmed = 0
        self.as_it_is_timed: Callable[[int], None] = lambda number: None

    async def ask(self, question: object, kind: type) -> object:
        if isinstance(question, TimeWindows):
            self.timed += 1
            self.as_it_is_timed(self.timed)
            windows = tuple(Window(1, 1.0, ms, ms) for ms in next(self.timings))
            return Timed(windows, Histogram.of([10**6]), 10**6, 10**6)
        self.warmed += kind is Warm
        return {Opened: Opened(Runtime("r", "1", "onnx"), 1, 1, 1), Warm: Warm(1, Memory(1, 1, 1))}[kind]


def measured(lab: Lab, board: Path, child: Child) -> headline.Headline:
    variant = Variant("tiny")
    job = lab.job(variant.manifest, variant.model, msgspec.structs.replace(QUICK, window_s=0.01))
    place = Place(sensors.look.__wrapped__(board).sources, board, lambda _: None)
    return asyncio.run(headline.measured(child, job, place))


def test_windows_that_agree_are_timed_once(lab: Lab, board: Path):
    child = Child((1.0, 1.02, 1.04))
    found = measured(lab, board, child)
    assert (child.timed, found.timing.latency.unstable, found.timing.quiet.attempts, found.notes) == (1, False, 1, ())


@pytest.mark.parametrize(
    ("first", "second", "stands_ms", "unstable"),
    [
        ((1.0, 1.2), (2.0, 2.02), 2.01, False),
        ((1.0, 1.1), (2.0, 2.8), 1.05, True),
        ((1.0, 1.4), (2.0, 2.4), 2.2, True),
    ],
)
def test_windows_that_disagree_are_timed_once_more_and_the_steadier_stands(
    lab: Lab, board: Path, first, second, stands_ms, unstable
):
    child = Child(first, second)
    found = measured(lab, board, child)
    assert child.timed == 2
    assert found.timing.latency.p50_ms == pytest.approx(stands_ms)
    assert found.timing.latency.unstable is unstable
    assert found.timing.quiet.attempts == 2
    (note,) = found.notes
    assert note.startswith("timed twice: the windows spread by ")
    assert note.endswith("; the steadier one stands")


def test_a_timing_stands_with_its_own_conditions(lab: Lab, board: Path):
    """The second was steadier, but throttled: the first stands, and nothing of the second is beside it."""
    child = Child((1.0, 1.1), (2.0, 2.0))

    def happens(number: int) -> None:
        (board / HEAT).write_text(f"{46000 + 300 * number}")
        if number == 2:
            (board / BITS).write_text("50004")

    child.as_it_is_timed = happens
    found = measured(lab, board, child)
    assert found.timing.latency.p50_ms == pytest.approx(1.05)
    assert found.timing.quiet.disturbed == ()
    assert found.timing.after.conditions.throttle_bits == 0x50000
    assert found.timing.after.conditions.temperature_celsius == 46.3
    assert found.notes[0].endswith("the second was disturbed, and the first stands")


def test_a_disturbed_timing_gives_way_to_the_second_and_its_conditions(lab: Lab, board: Path):
    child = Child((1.0, 1.0), (2.0, 2.0))
    bits = {1: "50004", 2: "50000"}

    def happens(number: int) -> None:
        (board / BITS).write_text(bits[number])
        (board / HEAT).write_text(f"{46000 + 300 * number}")

    child.as_it_is_timed = happens
    found = measured(lab, board, child)
    assert found.timing.latency.p50_ms == 2.0
    assert child.warmed == 2, "it has rested meanwhile"
    assert found.rest.conditions.temperature_celsius == 46.738
    assert found.timing.before.conditions.temperature_celsius == 46.3
    assert found.timing.after.conditions.temperature_celsius == 46.6
    assert (found.timing.quiet.attempts, len(found.timing.quiet.disturbed)) == (2, 1)
    assert "before it the board is throttled" in found.timing.quiet.disturbed[0]
