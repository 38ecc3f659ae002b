"""A sensor that disappears in mid-run is an error of its reading: the trial goes on, and says what it lacks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from edgepress_agent import sensors
from edgepress_agent.board import telemetry
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.messages import Measured
from measure_lab import QUICK, Lab, Variant

METER = "sys/class/hwmon/hwmon2"
ZONE = "sys/class/thermal/thermal_zone0/temp"
SHORT = msgspec.structs.replace(QUICK, windows=1, window_s=0.02, warmup_runs=1, warmup_s=0)


@pytest.fixture
def board(boards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(boards / "pi4_ina226", tmp_path / "board")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def measured(lab: Lab, root: Path, moment: str, happens: Callable[[], object]) -> Measured:
    """Profile the tiny model; when it comes to `moment`, something happens to the board."""
    heard: list[str] = []

    def follow(phase: str, detail: str) -> None:
        if detail == moment and detail not in heard:
            happens()
        heard.append(detail)

    lab.on_phase = follow
    variant = Variant("tiny")
    outcome = lab.profile(variant.manifest, variant.model, SHORT, root=root, golden=variant.golden)
    assert moment in heard
    assert isinstance(outcome, Measured), outcome
    return outcome


@pytest.mark.parametrize("moment", ["loading", "energy: idle 1 of 6", "energy: load 2 of 6", "energy: load 6 of 6"])
def test_a_trial_goes_on_without_a_meter_that_was_pulled_out(lab: Lab, board: Path, moment: str) -> None:
    got = measured(lab, board, moment, lambda: shutil.rmtree(board / METER)).measurement
    assert got.energy is None
    assert f"energy stays blank: {board / METER}/power1_input: gone" in got.notes
    assert got.latency.p50_ms > 0
    assert got.golden_max_error is not None
    assert got.after.temperature_celsius == 46.738


def test_a_meter_that_speaks_nonsense_is_no_energy_either(lab: Lab, board: Path) -> None:
    nonsense = board / METER / "power1_input"
    got = measured(lab, board, "energy: load 3 of 6", lambda: nonsense.write_text("soon\n")).measurement
    assert got.energy is None
    assert f"energy stays blank: {nonsense}: expected a decimal number, found 'soon'" in got.notes


def test_a_trial_goes_on_without_its_temperature_and_its_throttle_bits(lab: Lab, board: Path) -> None:
    def fails() -> None:
        (board / ZONE).unlink()
        (board / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("?\n")

    got = measured(lab, board, "warming up", fails).measurement
    assert (got.before.temperature_celsius, got.before.throttle_bits) == (46.738, 0x50000)
    assert (got.after.temperature_celsius, got.after.throttle_bits) == (None, None)
    assert f"cpu-thermal stays blank: {board / ZONE}: gone" in got.notes
    assert any(note.startswith("pi-throttled stays blank: get_throttled: ") for note in got.notes)
    assert got.energy is not None
    assert got.energy.sensor == "ina226"


def test_a_trial_says_which_sensor_could_not_be_used_from_the_start(lab: Lab, board: Path) -> None:
    (board / METER / "power1_input").write_text("?\n")
    got = measured(lab, board, "loading", lambda: None).measurement
    assert got.energy is None
    assert any(note.startswith("no readings of ina2xx: ") for note in got.notes)


def test_what_is_gone_is_an_error_of_the_reading_and_comes_back(board: Path) -> None:
    source = sensors.power(sensors.found(board))
    assert source is not None
    meter = board / METER / "power1_input"
    meter.rename(meter.with_name("elsewhere"))
    with pytest.raises(Unavailable, match="gone"):
        source.read()
    assert telemetry.read(board, None).power_mw is None
    meter.with_name("elsewhere").rename(meter)
    assert source.read() == 1631.25
    assert telemetry.read(board, None).power_mw == 1631.25
