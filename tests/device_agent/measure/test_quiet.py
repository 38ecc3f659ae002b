"""Whether a board is quiet is looked at before and while a trial is timed; a disturbed trial is timed once more."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from edgepress_agent import sensors
from edgepress_agent.measure import conditions, quiet
from edgepress_agent.measure.conditions import Snapshot
from edgepress_protocol.measurement import Conditions
from hypothesis import given
from hypothesis import strategies as st
from measure_lab import QUICK, Lab, Variant

CALM = Snapshot(Conditions("ondemand", 1_500_000_000, 45.0, 0x50000, 0.3), 0, "pmode:0002")


def seen(first: Snapshot = CALM, last: Snapshot = CALM, busy_cores: float | None = 0.1) -> quiet.Check:
    return quiet.Check(first, last, 3.0, busy_cores)


def but(**fields: object) -> Snapshot:
    return Snapshot(msgspec.structs.replace(CALM.conditions, **fields), CALM.throttle_events, CALM.power_mode)


def said(before: quiet.Check, after: Snapshot = CALM, busy_cores: float | None = 0.1) -> tuple[str, ...]:
    return quiet.judge(before, after, busy_cores, attempts=1).disturbed


def test_a_calm_board_is_quiet_though_it_throttled_once_since_boot_and_its_load_average_is_high():
    assert said(seen()) == ()
    assert said(seen(last=but(load_1min=3.0))) == ()


def test_what_a_board_cannot_tell_is_blank_and_does_not_disturb():
    blank = Snapshot(Conditions(), None, None)
    found = quiet.judge(quiet.Check(blank, blank, 3.0, None), blank, None, attempts=1)
    assert found.disturbed == ()
    assert (found.busy_cores_before, found.busy_cores, found.celsius_per_minute, found.power_mode) == (None,) * 4


@pytest.mark.parametrize(
    ("before", "after", "busy_cores", "line"),
    [
        (seen(busy_cores=1.25), CALM, 0.1, "before it others kept 1.2 of"),
        (seen(), CALM, 0.5, "others kept 0.5 of"),
        (seen(last=but(temperature_celsius=43.5)), CALM, 0.1, "before it the board cooled by 1.5 °C"),
        (seen(last=but(temperature_celsius=46.1)), CALM, 0.1, "before it the board warmed by 1.1 °C"),
        (seen(last=but(throttle_bits=0x50005)), but(throttle_bits=0x50005), 0.1, "before it the board is throttled"),
        (seen(), but(throttle_bits=0x50001), 0.1, "the board throttled: under-voltage now"),
        (seen(), but(governor="powersave"), 0.1, "the governor went from ondemand to powersave"),
        (seen(), Snapshot(CALM.conditions, 2, CALM.power_mode), 0.1, "the board throttled 2 times for over-current"),
        (seen(), Snapshot(CALM.conditions, 0, "pmode:0000"), 0.1, "the power mode went from pmode:0002 to pmode:0000"),
    ],
)
def test_each_disturbance_is_named(before: quiet.Check, after: Snapshot, busy_cores: float, line: str):
    (only,) = said(before, after, busy_cores)
    assert only.startswith(line)


@given(st.integers(0, 0xFFFFF), st.integers(0, 0xFFFFF))
def test_a_bit_that_was_set_before_has_not_risen(before: int, after: int):
    rose = bool(conditions.throttled(but(throttle_bits=before), but(throttle_bits=after)))
    assert rose == any(after >> bit & 1 > before >> bit & 1 for bit in (0, 1, 2, 3, 16, 17, 18, 19))


def test_the_slope_is_that_of_the_check():
    found = quiet.judge(seen(last=but(temperature_celsius=45.5)), CALM, None, attempts=1)
    assert found.celsius_per_minute == pytest.approx(10.0)


@pytest.mark.parametrize(("moves", "looks"), [([2.0, 1.5, 0.4, 0.0], 3), ([0.0], 1), ([2.0] * 99, quiet.REST_CHECKS)])
def test_a_board_that_warms_or_cools_is_waited_for_but_not_for_ever(monkeypatch, moves: list[float], looks: int):
    checks = iter([seen(last=but(temperature_celsius=45.0 - moved)) for moved in moves])
    seen_so_far: list[quiet.Check] = []

    async def check(*_: object) -> quiet.Check:
        seen_so_far.append(next(checks))
        return seen_so_far[-1]

    monkeypatch.setattr(quiet, "check", check)
    told: list[str] = []
    assert asyncio.run(quiet.at_rest((), Path("/"), 1.0, told.append)) is seen_so_far[-1]
    assert len(seen_so_far) == looks
    assert told == [
        f"waiting for the board to come to rest: the board cooled by {m:.1f} °C" for m in moves[: looks - 1]
    ]


def test_a_board_that_never_rests_is_measured_within_its_time(lab: Lab, board: Path, monkeypatch):
    """A coarse sensor that goes up and down by a degree: twenty looks of 50 ms come on top of the trial's second."""
    real, moved = quiet.check, []

    async def check(*given: object) -> quiet.Check:
        moved.append(await real(*given))
        warm = msgspec.structs.replace(moved[-1].last.conditions, temperature_celsius=60.0)
        return dataclasses.replace(moved[-1], last=dataclasses.replace(moved[-1].last, conditions=warm))

    monkeypatch.setattr(quiet, "check", check)
    monkeypatch.setattr(quiet, "REST_CHECKS", 100)
    variant = Variant("tiny")
    options = msgspec.structs.replace(QUICK, windows=1, paced_hz=0, energy=False, timeout_s=8.0)
    result = lab.profile(variant.manifest, variant.model, options, root=board)
    assert len(moved) == 2 * 100
    assert "before it the board warmed by 13.3 °C" in result.measurement.quiet.disturbed


def test_a_board_cools_before_a_long_load(board: Path):
    heat = iter([55.0, 50.0, 47.1])
    zone = board / "sys/class/thermal/thermal_zone0/temp"
    zone.write_text("60000")
    sources = sensors.look.__wrapped__(board).sources
    told: list[str] = []

    def cools(line: str) -> None:
        told.append(line)
        zone.write_text(str(round(1000 * next(heat))))

    rest = but(temperature_celsius=46.0)
    found = asyncio.run(quiet.cooled(sources, board, rest, 0.01, cools))
    assert found.conditions.temperature_celsius == 47.1
    assert len(told) == 3
    assert "60.0 °C, it was 46.0 °C" in told[0]


def test_a_board_that_does_not_cool_is_loaded_all_the_same(board: Path, monkeypatch):
    monkeypatch.setattr(quiet, "COOL_S", 0.05)
    sources = sensors.look.__wrapped__(board).sources
    rest = but(temperature_celsius=20.0)
    assert asyncio.run(quiet.cooled(sources, board, rest, 0.01, lambda _: None)).conditions.temperature_celsius > 40


@pytest.mark.parametrize(("own_cores", "others"), [(0.0, 1.0), (0.75, 0.25)])
def test_the_time_of_others_is_that_of_all_less_that_of_the_model(tmp_path: Path, monkeypatch, own_cores, others):
    """Of two cores one is busy for a second."""
    monkeypatch.setattr(quiet, "cores", lambda: 2)
    clock = iter([0, 10**9])
    monkeypatch.setattr(quiet, "time", SimpleNamespace(monotonic_ns=lambda: next(clock)))
    stat = tmp_path / "proc/stat"
    stat.parent.mkdir()
    stat.write_text("cpu  100 0 0 900 0 0 0 0 0 0\n")
    counting = quiet.Others(tmp_path)
    stat.write_text("cpu  200 0 0 1000 0 0 0 0 0 0\n")
    assert counting.busy_cores(round(own_cores * 1e9)) == pytest.approx(others)


# ---- whole trials, on a recorded board


@pytest.fixture
def board(boards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(boards / "pi4", tmp_path / "board")


BITS = "sys/devices/platform/soc/soc:firmware/get_throttled"


def profile(lab: Lab, root: Path, throttles: dict[str, str]):
    """Profile on a board whose throttle bits become these when a phase begins so."""

    def follow(phase: str, detail: str) -> None:
        for beginning, bits in throttles.items():
            if detail.startswith(beginning):
                (root / BITS).write_text(bits)

    lab.on_phase = follow
    variant = Variant("tiny")
    options = msgspec.structs.replace(QUICK, windows=1, window_s=0.02, warmup_runs=1, warmup_s=0, paced_hz=0)
    return lab.profile(variant.manifest, variant.model, options, root=root, golden=variant.golden).measurement


def test_a_trial_that_was_disturbed_twice_is_timed_twice_and_marked(lab: Lab, board: Path):
    result = profile(lab, board, {"timing": "50004"})
    assert result.quiet.attempts == 2
    assert result.quiet.disturbed == ("before it the board is throttled: throttled now",)
    first = "timed twice: the first time was disturbed (the board throttled: throttled now); the second stands"
    assert first in result.notes
    assert [detail for _, detail in lab.phases].count("once more: the board throttled: throttled now") == 1


def test_a_trial_that_was_quiet_the_second_time_is_not_marked(lab: Lab, board: Path):
    result = profile(lab, board, {"timing": "50004", "once more": "50000"})
    assert (result.quiet.attempts, result.quiet.disturbed) == (2, ())
    assert result.latency.p50_ms > 0


def test_a_quiet_trial_is_timed_once(lab: Lab, board: Path):
    result = profile(lab, board, {})
    assert (result.quiet.attempts, result.quiet.disturbed) == (1, ())
    assert result.quiet.busy_cores is None
    assert not any(note.startswith("timed twice") for note in result.notes)


def test_the_processor_time_of_others_is_read_on_this_machine(lab: Lab):
    found = lab.profile_variant("tiny").measurement.quiet
    assert 0 <= found.busy_cores_before <= quiet.cores()
    assert 0 <= found.busy_cores <= quiet.cores()
