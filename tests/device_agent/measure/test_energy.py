"""Energy per inference: right where a sensor sees it, below resolution where it does not, blank without a sensor."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path
from time import monotonic_ns

import meter_lab
import msgspec
import pytest
from edgepress_agent import sensors
from edgepress_agent.measure import energy
from edgepress_agent.measure.energy import Pair, counted_mw, net_of_idle, trapezoid_mw
from edgepress_agent.measure.pipe import Worked
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Energy, Sensor
from edgepress_protocol.messages import Measured
from hypothesis import given
from hypothesis import strategies as st
from measure_lab import QUICK, Lab, Variant

METER = sensors.Source(Sensor("meter", "power", "external", simulated=True), lambda: 0.0, 25.0)
readings = st.lists(
    st.tuples(st.integers(0, 10**9), st.floats(0, 1e5)), min_size=1, max_size=30, unique_by=lambda r: r[0]
)


@given(readings, st.integers(0, 10**9), st.integers(1, 10**9), st.floats(0, 1e5))
def test_the_mean_lies_between_the_readings_and_a_level_adds_up(samples, start, length, level):
    samples = sorted(samples)
    low, high = min(mw for _, mw in samples), max(mw for _, mw in samples)
    mean = trapezoid_mw(samples, start, start + length)
    assert low - 1e-6 <= mean <= high + 1e-6
    lifted = trapezoid_mw([(at, mw + level) for at, mw in samples], start, start + length)
    assert lifted == pytest.approx(mean + level, rel=1e-6, abs=1e-6)


def test_a_slope_is_integrated_exactly_though_its_edges_lie_between_readings():
    slope = [(at, 2.0 * at) for at in range(0, 101, 10)]
    assert trapezoid_mw(slope, 15, 47) == pytest.approx(2.0 * (15 + 47) / 2)


def test_no_reading_is_an_error():
    with pytest.raises(Unavailable):
        trapezoid_mw([], 0, 1)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_counter_may_wrap(before, gained):
    wraps_at = 10**6 + 1
    power = counted_mw((0, before), (2 * 10**9, (before + gained) % wraps_at), wraps_at)
    assert power == pytest.approx(gained / 2)


@pytest.mark.parametrize("board", [meter_lab.QUIET, meter_lab.DRIFTING, meter_lab.BURSTING, meter_lab.RESTLESS])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(board: meter_lab.Board):
    """The whole protocol, on a board whose power is known; `make bench-profiler` does it a thousand times."""
    covered = 0
    for seed in range(40):
        said, truth_mj = meter_lab.simulate(board, 2.0, seed)
        covered += said.low_mj <= truth_mj <= said.high_mj
    assert covered >= 35


def test_a_steady_drift_does_not_move_the_mean():
    """Were idle always first, 50 mW/s would add 0.4 mJ to these 6."""
    steep = meter_lab.Board(drift_mw_per_s=50.0, noise_mw=0.0, step_mw=1.0)
    said, truth_mj = meter_lab.simulate(steep, 2.0, 0)
    assert (said.low_mj + said.high_mj) / 2 == pytest.approx(truth_mj, rel=0.002)


def test_a_meter_is_read_25_times_a_second_at_most():
    readings = []

    async def read(_source: sensors.Source) -> tuple[int, float]:
        readings.append(monotonic_ns())
        return readings[-1], 2000.0

    async def story() -> None:
        meter = energy.Meter(dataclasses.replace(METER, rate_hz=1000.0), read=read)
        await energy.measure(idle_work, meter, 0.2, lambda _: None)

    asyncio.run(story())
    # Twelve stretches of 0.2 s: five readings each on the beat, and one at the end.
    assert len(readings) <= 12 * (5 + 2)


def test_a_counter_is_read_at_the_ends_of_a_stretch_alone():
    readings = []

    async def read(_source: sensors.Source) -> tuple[int, float]:
        readings.append(monotonic_ns())
        return readings[-1], readings[-1] / 1e6

    async def story() -> Energy:
        meter = energy.Meter(dataclasses.replace(METER, rate_hz=1000.0, wraps_at_mj=1e12), read=read)
        return await energy.measure(idle_work, meter, 0.05, lambda _: None)

    found = asyncio.run(story())
    assert len(readings) == 12 * 2
    assert found.load_mw == pytest.approx(1000.0)


async def idle_work(seconds: float) -> Worked:
    start_ns = monotonic_ns()
    await asyncio.sleep(seconds)
    return Worked(10, start_ns, monotonic_ns())


def test_an_interval_that_spans_zero_is_below_resolution():
    flat = [Pair(2000 + noise, 2000 - noise, 1.0, 10) for noise in (-2, 1, 2, -1, 1, -1)]
    result = net_of_idle(flat, METER)
    assert result.mj_per_inference is None
    assert result.low_mj <= 0 <= result.high_mj
    certain = [Pair(2000, 2100 + noise, 1.0, 10) for noise in (-2, 1, 2, -1, 1, -1)]
    assert net_of_idle(certain, METER).mj_per_inference == pytest.approx(10.0)


# ---- whole trials


def test_energy_is_blank_without_a_sensor(lab: Lab, boards: Path):
    variant = Variant("tiny")
    result = lab.profile(variant.manifest, variant.model, root=boards / "pi4").measurement
    assert result.simulated
    assert result.energy is None
    assert result.before.temperature_celsius == 46.738


def test_energy_is_blank_where_it_was_not_asked_for(lab: Lab, boards: Path):
    variant = Variant("tiny")
    options = msgspec.structs.replace(QUICK, energy=False)
    assert lab.profile(variant.manifest, variant.model, options, root=boards / "orin-nano").measurement.energy is None


@pytest.mark.parametrize("name", ["orin-nano", "x86-rapl"])
def test_a_recorded_power_that_never_moves_is_below_resolution_and_simulated(lab: Lab, boards: Path, name):
    variant = Variant("tiny")
    result = lab.profile(variant.manifest, variant.model, root=boards / name).measurement.energy
    assert result.mj_per_inference is None
    assert result.simulated
    assert result.pairs == 6


def test_a_known_power_and_a_known_run_give_the_energy_of_one_inference(
    lab: Lab, boards: Path, tmp_path: Path, misbehaving_runtime
):
    """2 W idle and 5 W under load; a run sleeps 4 ms, every tenth 20: 3 W times 5.6 ms on average."""
    root = tmp_path / "board"
    shutil.copytree(boards / "pi4_ina226", root)
    meter = root / "sys/class/hwmon/hwmon2/power1_input"

    def follow(phase: str, detail: str) -> None:
        if detail.startswith("energy: "):
            meter.write_text("5000000\n" if "load" in detail else "2000000\n")

    lab.on_phase = follow
    options = msgspec.structs.replace(QUICK, window_s=0.15)
    measured = lab.profile(*lab.misbehaving("sleep"), options, root=root)
    assert isinstance(measured, Measured), measured
    result, latency = measured.measurement.energy, measured.measurement.latency
    assert result.idle_mw == pytest.approx(2000)
    assert result.load_mw == pytest.approx(5000)
    assert (result.sensor, result.scope, result.simulated) == ("ina226", "external", True)
    # A sleep is never shorter than asked for, and on a shared machine a few times that at most.
    assert 3000 * 4.0 / 1000 <= result.mj_per_inference <= 3000 * 10 * latency.p50_ms / 1000


@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_energy_is_invalid_where_the_board_throttled_under_a_load(lab: Lab, boards: Path, tmp_path: Path, number: int):
    """Every other pair idles after its load, and by then the board no longer throttles."""
    root = shutil.copytree(boards / "pi4_ina226", tmp_path / "board")

    def follow(phase: str, detail: str) -> None:
        bits = "50001" if detail == f"energy: load {number} of 6" else "50000"
        (root / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text(bits)

    lab.on_phase = follow
    variant = Variant("tiny")
    options = msgspec.structs.replace(QUICK, windows=1, window_s=0.02)
    result = lab.profile(variant.manifest, variant.model, options, root=root).measurement
    assert result.energy.invalid == "the board throttled: under-voltage now"
    assert result.energy.mj_per_inference is None
    assert result.energy.pairs == 6
    assert result.latency.p50_ms > 0


def test_energy_of_a_board_that_throttles_all_along_is_invalid(lab: Lab, boards: Path, tmp_path: Path):
    root = shutil.copytree(boards / "pi4_ina226", tmp_path / "board")
    (root / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("50004")
    variant = Variant("tiny")
    options = msgspec.structs.replace(QUICK, windows=1, window_s=0.02)
    result = lab.profile(variant.manifest, variant.model, options, root=root).measurement
    assert result.energy.invalid == "the board is throttled: throttled now"


def test_the_interval_is_students():
    """Mean 3.5, deviation sqrt(3.5): half of it is 2.570582 * sqrt(3.5 / 6) for five degrees of freedom."""
    pairs = [Pair(0.0, float(net), 1.0, 1) for net in range(1, 7)]
    found = net_of_idle(pairs, METER)
    assert (found.low_mj, found.high_mj) == pytest.approx((3.5 - 1.963314, 3.5 + 1.963314), abs=1e-5)
