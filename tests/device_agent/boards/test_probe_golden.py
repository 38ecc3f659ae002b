"""What `edgepress-agent probe` says of nine recorded boards, and that it never passes a recording off as a reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from boards_lab import BOARDS, GOLDEN, json_of, probed, text_of, tree
from click.testing import CliRunner
from edgepress_agent import sensors
from edgepress_agent.board import probe, telemetry
from edgepress_agent.cli import cli


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
