"""What the agent sees of nine recorded boards, and that it never passes a recording off as a reading.

`golden.json` beside the trees is written anew with: python tests/device_agent/measure/test_boards.py UNPACKED_TREES
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import msgspec
import pytest
from edgepress_agent import sensors
from edgepress_agent.board import probe, telemetry
from edgepress_agent.measure import conditions
from edgepress_agent.sensors.pmic import rails_mw
from edgepress_agent.serving.serve import ServeStats
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.histogram import Histogram
from measure_lab import BOARDS, FIXTURES

GOLDEN = FIXTURES / "boards/golden.json"
WITHOUT_PROC = {"battery", "x86-rapl"}
OF_THIS_MACHINE = {"os", "python"}
OF_THIS_MACHINE_WITHOUT_PROC = {"kind", "model", "arch", "cpu", "cores", "memory_bytes"}


def seen(root: Path, name: str) -> dict:
    """All that is read below one root, less what recorded trees leave to the machine that runs the test."""
    board = msgspec.to_builtins(probe.board(root))
    for field in OF_THIS_MACHINE | (OF_THIS_MACHINE_WITHOUT_PROC if name in WITHOUT_PROC else set()):
        del board[field]
    found = sensors.found(root)
    snapshot = conditions.read(found, root)
    now = telemetry.read(root, None)
    return {
        "board": board,
        "sensors": {source.sensor.name: reading(source) for source in found},
        "power": getattr(sensors.power(found), "sensor", None) and sensors.power(found).sensor.name,
        "conditions": msgspec.to_builtins(snapshot.conditions),
        "power_mode": snapshot.power_mode,
        "telemetry": {
            "power_mw": now.power_mw and round(now.power_mw, 3),
            "temperature_celsius": now.temperature_celsius,
            "memory_used_bytes": now.memory_used_bytes,
            "cpu_percent": now.cpu_percent,
        },
    }


def reading(source: sensors.Source) -> dict:
    return {**msgspec.to_builtins(source.sensor), "reads": round(source.read(), 3)}


@pytest.mark.parametrize("name", BOARDS)
def test_a_recorded_board_is_seen_as_it_always_was(boards: Path, name):
    assert seen(boards / name, name) == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", BOARDS)
def test_everything_below_another_root_is_simulated(boards: Path, name, tmp_path):
    device = probe.inventory(boards / name, device_id="pi", state_dir=tmp_path)
    assert device.board.simulated
    assert all(sensor.simulated for sensor in device.sensors)
    assert telemetry.read(boards / name, None).simulated
    assert "simulated" in probe.describe(device)


def test_this_machine_is_not_simulated(tmp_path):
    device = probe.inventory(Path("/"), device_id="pi", state_dir=tmp_path)
    assert not device.board.simulated
    assert not any(sensor.simulated for sensor in device.sensors)
    assert device.board.cores > 0
    assert device.board.memory_bytes > 1 << 28
    assert device.free_disk_bytes > 0
    assert "simulated" not in probe.describe(device)


def test_a_parent_rail_is_never_added_to_its_children(boards: Path):
    """Orin Nano: VDD_IN alone. AGX Orin: three rails, without the one below VIN_SYS_5V0."""
    assert sensors.power(sensors.found(boards / "orin-nano")).read() == pytest.approx(4984 * 1008 / 1000)
    agx = (19048 * 160 + 19048 * 40 + 4968 * 953) / 1000
    assert sensors.power(sensors.found(boards / "agx-orin")).read() == pytest.approx(agx)
    assert sensors.power(sensors.found(boards / "nano")).read() == 2118


def test_the_pmic_pairs_by_name(boards: Path):
    rails = rails_mw((boards / "pi5/fake/vcgencmd/pmic_read_adc").read_text())
    assert len(rails) == 12
    assert rails["VDD_CORE"] == pytest.approx(6.22421 * 0.861733 * 1000)
    assert not {"EXT5V", "BATT"} & set(rails)


def test_a_disabled_channel_is_left_out(boards: Path, tmp_path):
    root = tmp_path / "orin"
    shutil.copytree(boards / "orin-nano", root)
    chip = root / "sys/class/hwmon/hwmon1"
    (chip / "in2_enable").write_text("0\n")
    (chip / "curr3_input").unlink()
    assert sensors.power(sensors.found(root)).read() == pytest.approx(4984 * 1008 / 1000)
    (chip / "curr1_input").write_text("-8\n")
    assert sensors.power(sensors.found(root)).read() == pytest.approx(4984 * -8 / 1000)


def test_a_sensor_that_fails_is_an_error_and_never_a_number(boards: Path, tmp_path):
    root = tmp_path / "orin"
    shutil.copytree(boards / "orin-nano", root)
    source = sensors.power(sensors.found(root))
    for spoil in (lambda path: path.write_text("soon\n"), lambda path: path.unlink()):
        spoil(root / "sys/class/hwmon/hwmon1/curr1_input")
        with pytest.raises(Unavailable):
            source.read()
    assert telemetry.read(root, None).power_mw is None


def test_a_battery_that_charges_tells_nothing_of_the_board(boards: Path, tmp_path):
    shutil.copytree(boards / "battery", tmp_path / "b")
    source = sensors.power(sensors.found(tmp_path / "b"))
    assert source.read() == pytest.approx(18_240)
    (tmp_path / "b/sys/class/power_supply/BAT0/status").write_text("Charging\n")
    with pytest.raises(Unavailable):
        source.read()


def test_throttling_while_a_trial_ran_is_noted(boards: Path, tmp_path):
    shutil.copytree(boards / "orin-nano", tmp_path / "o")
    root = tmp_path / "o"
    before = conditions.read(sensors.found(root), root)
    (root / "sys/class/hwmon/hwmon2/oc2_event_cnt").write_text("3\n")
    after = conditions.read(sensors.found(root), root)
    assert conditions.notes(before, after) == (
        "power mode pmode:0002",
        "the board throttled 3 times for over-current while this was measured",
    )


def test_a_bare_root_has_nothing_and_says_nothing(tmp_path):
    assert sensors.found(tmp_path) == ()
    snapshot = conditions.read((), tmp_path)
    assert set(msgspec.to_builtins(snapshot.conditions).values()) == {None}
    now = telemetry.read(tmp_path, None)
    assert (now.power_mw, now.temperature_celsius, now.cpu_percent, now.requests) == (None, None, None, None)


def test_telemetry_tells_how_serving_goes(tmp_path):
    stats = ServeStats(requests=3, errors=1, latency=Histogram.of([1_000_000, 2_000_000, 3_000_000]))
    now = telemetry.read(Path("/"), stats, state_dir=tmp_path)
    assert (now.requests, now.request_errors) == (3, 1)
    assert now.request_p50_ms == pytest.approx(2.0, rel=0.004)
    assert now.uptime_s > 0
    assert now.memory_used_bytes > 0
    assert now.free_disk_bytes > 0


if __name__ == "__main__":
    trees = Path(sys.argv[1])
    every = {name: seen(trees / name, name) for name in BOARDS}
    GOLDEN.write_text(json.dumps(every, indent=1) + "\n")
