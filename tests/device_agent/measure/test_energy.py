"""Energy per inference: right where a sensor sees it, below resolution where it does not, blank without a sensor."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
import pytest
from edgepress_agent import sensors
from edgepress_agent.measure import energy
from edgepress_agent.measure.energy import Pair, counted_mw, net_of_idle, trapezoid_mw
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Sensor
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


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Pairs with drift between them and noise within: 95 % nominal over 600 seeded trials."""
    source, truth_mj, covered = random.Random(0), 3.0, 0
    for _ in range(600):
        pairs = []
        for number in range(energy.PAIRS):
            idle = 2000 + 30 * number
            load_s, runs = 1.0, 100
            load = idle + truth_mj * runs / load_s + source.gauss(0, 25)
            pairs.append(Pair(idle, load, load_s, runs))
        result = net_of_idle(pairs, METER)
        covered += result.low_mj <= truth_mj <= result.high_mj
    assert 0.92 <= covered / 600 <= 0.98


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
