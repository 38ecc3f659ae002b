"""What `edgepress-agent probe` says of nine recorded boards, and that it never passes a recording off as a reading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from boards_lab import BOARDS, GOLDEN, json_of, probed, text_of, tree
from click.testing import CliRunner
from edgepress_agent import sensors
from edgepress_agent.board import probe, telemetry
from edgepress_agent.cli import cli
from edgepress_protocol.measurement import Sensor


@pytest.mark.parametrize("name", BOARDS)
def test_probe_says_what_it_always_said(boards: Path, name: str) -> None:
    assert text_of(boards / name, name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", BOARDS)
def test_probe_in_json_says_what_it_always_said(boards: Path, name: str) -> None:
    assert json_of(boards / name, name) == (GOLDEN / f"{name}.json").read_text()


@pytest.mark.parametrize("name", BOARDS)
def test_telemetry_and_probe_agree(boards: Path, name: str) -> None:
    """A counter is no power of a moment, and a recorded tree has no load of its own."""
    told = json.loads(probed(boards / name, "--json"))
    values = {each["sensor"]["quantity"]: each["value"] for each in told["readings"] if each["unit"] != "mJ"}
    now = telemetry.read(boards / name, None)
    assert now.power_mw == pytest.approx(values.get("power"), abs=1e-3)
    assert now.temperature_celsius == values.get("temperature")
    assert now.cpu_percent is None
    has = told["memory"]
    used = None if has["total_bytes"] is None else has["total_bytes"] - has["available_bytes"]
    assert now.memory_used_bytes == used


@pytest.mark.parametrize("name", BOARDS)
def test_everything_below_another_root_is_simulated(boards: Path, name: str, tmp_path: Path) -> None:
    device = probe.inventory(boards / name, device_id="pi", state_dir=tmp_path)
    assert device.board.simulated
    assert all(sensor.simulated for sensor in device.sensors)
    assert telemetry.read(boards / name, None).simulated
    assert "simulated" in probed(boards / name).splitlines()[0]


def test_this_machine_is_not_simulated(tmp_path: Path) -> None:
    device = probe.inventory(Path("/"), device_id="pi", state_dir=tmp_path)
    assert not device.board.simulated
    assert not any(sensor.simulated for sensor in device.sensors)
    assert device.board.cores > 0
    assert device.board.memory_bytes > 1 << 28
    assert device.free_disk_bytes is not None
    assert device.free_disk_bytes > 0
    assert "simulated" not in probed(Path("/"))


def test_a_clock_that_cannot_be_read_is_one_line_of_trouble(boards: Path, tmp_path: Path) -> None:
    root = shutil.copytree(boards / "pi4", tmp_path / "board")
    broken = root / "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq"
    broken.write_text("<unknown>\n")
    told = json.loads(probed(root, "--json"))
    assert len([line for line in told["troubles"] if str(broken) in line]) == 1, told["troubles"]
    assert told["clock"]["frequency_hz"] is None
    assert told["clock"]["governor"]
    assert any(each["value"] for each in told["readings"])


RATES_HZ = {"agx-orin": 25, "nano": 25, "orin-nano": 25, "pi4_ina226": 25, "pi5": 10, "battery": 1}
"""As often as their chips have something new to say; none oftener than a trial reads."""


@pytest.mark.parametrize("name", RATES_HZ)
def test_power_is_read_as_often_as_it_is_new(boards: Path, name: str) -> None:
    source = sensors.power(sensors.found(boards / name))
    assert source is not None
    assert source.rate_hz == RATES_HZ[name]


def test_of_several_meters_the_one_that_sees_most_is_read() -> None:
    def meter(scope: str) -> sensors.Source:
        return sensors.Source(Sensor(scope, "power", scope, simulated=True), lambda: 0.0, 1.0)

    scopes = ["battery", "package", "pmic-rails", "module", "external"]
    for number in range(1, len(scopes) + 1):
        found = sensors.power([meter(scope) for scope in scopes[:number]])
        assert found is not None
        assert found.sensor.scope == scopes[number - 1]


def test_nothing_is_written_below_the_root(boards: Path) -> None:
    """`samples` and `update_interval` of an INA3221 are the user's."""

    def state() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in (boards / "agx-orin").rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    probed(boards / "agx-orin")
    assert state() == before


def test_a_sensor_that_cannot_be_used_is_a_line(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon0"
    root = tree(tmp_path, {f"{chip}/name": "ina3221", f"{chip}/in1_label": "VDD_NEW", f"{chip}/curr1_input": 5})
    told = json.loads(probed(root, "--json"))
    assert told["troubles"] == [
        "ina3221: which of the rails VDD_NEW make up the total is not known; a guess would be no measurement"
    ]
    assert told["sensors"] == []
    lines = probed(root).splitlines()
    assert "sensor     no power sensor that can be read: energy per inference stays blank" in lines
    assert lines[-1].startswith("trouble    ina3221: which of the rails VDD_NEW")


def test_a_sensor_that_fails_at_the_moment_is_a_line(boards: Path, tmp_path: Path) -> None:
    supply = {"type": "Battery", "voltage_now": 11_400_000, "current_now": -1_600_000, "status": "Charging"}
    root = tree(tmp_path, {f"sys/class/power_supply/BAT0/{name}": text for name, text in supply.items()})
    (reading,) = json.loads(probed(root, "--json"))["readings"]
    assert reading["value"] is None
    assert "does not discharge" in reading["trouble"]
    assert "power: battery (battery), cannot be read: " in probed(root)


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Else all of it would be this machine's, and be called simulated."""
    done = CliRunner().invoke(cli, ["probe", "--root", str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert "does not exist" in done.output


def test_a_bare_root_has_nothing_and_says_so(tmp_path: Path) -> None:
    assert sensors.look(tmp_path) == sensors.Found((), ())
    now = telemetry.read(tmp_path, None)
    assert (now.power_mw, now.temperature_celsius, now.cpu_percent, now.requests) == (None, None, None, None)
    said = probed(tmp_path)
    assert "frequency not told, no governor" in said
    assert "no power sensor that can be read" in said
