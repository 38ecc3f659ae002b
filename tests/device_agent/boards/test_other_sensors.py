"""Meters, counters, batteries, thermal zones, over-current events, clocks: what is taken and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from boards_lab import tree
from edgepress_agent import sensors
from edgepress_agent.board import cpufreq
from edgepress_agent.sensors import battery, ina2xx, rapl, soctherm, thermal
from edgepress_protocol.errors import Unavailable


def meter(folder: Path, number: int, chip: str, **files: object) -> Path:
    there = {"name": chip, "power1_input": 1_631_250, **files}
    return tree(folder, {f"sys/class/hwmon/hwmon{number}/{name}": text for name, text in there.items()})


def supply(folder: Path, name: str, **files: object) -> Path:
    there = {"type": "Battery", "status": "Discharging", "voltage_now": 11_400_000, "current_now": -1_600_000, **files}
    return tree(folder, {f"sys/class/power_supply/{name}/{file}": text for file, text in there.items()})


def package(folder: Path, number: int, **files: object) -> Path:
    there = {"name": f"package-{number}", "energy_uj": 5_000_000, "max_energy_range_uj": 262_143_328_850, **files}
    return tree(folder, {f"sys/class/powercap/intel-rapl:{number}/{name}": text for name, text in there.items()})


def zones(folder: Path, **milli_celsius: object) -> Path:
    for number, (kind, milli) in enumerate(milli_celsius.items()):
        zone = f"sys/class/thermal/thermal_zone{number}"
        tree(folder, {f"{zone}/type": kind.replace("_", "-"), f"{zone}/temp": milli})
    return folder


def the(source: sensors.Source | None) -> sensors.Source:
    assert source is not None
    return source


@pytest.mark.parametrize("chip", ["ina219", "ina226", "ina231", "ina238"])
def test_a_meter_on_the_supply_sees_the_whole_board(tmp_path: Path, chip: str) -> None:
    source = the(ina2xx.detect(meter(tmp_path, 3, chip)))
    assert (source.sensor.name, source.sensor.scope, source.read()) == (chip, "external", 1631.25)


@pytest.mark.parametrize(("interval_ms", "rate_hz"), [(35, 25.0), (140, 1000 / 140), (0, 25.0), (-5, 25.0)])
def test_a_meter_is_not_asked_more_often_than_it_converts(tmp_path: Path, interval_ms: int, rate_hz: float) -> None:
    assert the(ina2xx.detect(meter(tmp_path, 0, "ina226", update_interval=interval_ms))).rate_hz == rate_hz


def test_which_of_two_meters_is_on_the_supply_is_not_guessed(tmp_path: Path) -> None:
    meter(meter(tmp_path, 1, "ina219"), 2, "ina226")
    with pytest.raises(Unavailable, match=r"2 power meters, hwmon1 \(ina219\), hwmon2 \(ina226\)"):
        ina2xx.detect(tmp_path)


def test_the_meter_that_sees_most_is_read(boards: Path, tmp_path: Path) -> None:
    """External before the battery's gauge."""
    root = supply(meter(tmp_path, 1, "ina226"), "BAT0")
    assert the(sensors.power(sensors.found(root))).sensor.name == "ina226"


def test_the_counter_of_a_package_is_read_at_the_ends_of_a_window(boards: Path) -> None:
    source = the(rapl.detect(boards / "x86-rapl"))
    assert source.wraps_at_mj == pytest.approx(262_143_328.850)
    assert source.rate_hz < 0.1
    assert source.read() == pytest.approx(262_143_300.0, abs=100)


def test_a_core_or_the_memory_is_no_package(tmp_path: Path) -> None:
    assert rapl.detect(package(tmp_path, 0, name="psys")) is None


def test_two_packages_are_not_passed_off_as_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="2 packages"):
        rapl.detect(package(package(tmp_path, 0), 1))


def test_a_counter_that_may_not_be_read_is_a_trouble(tmp_path: Path) -> None:
    """As it is for all but root; here a file whose reading is an error for root as well."""
    counter = package(tmp_path, 0) / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.unlink()
    counter.symlink_to("/proc/self/mem")
    found = sensors.look(tmp_path)
    assert found.sources == ()
    (trouble,) = found.troubles
    assert trouble.startswith(f"rapl: {counter}: Input/output error; where it is root's alone, ")


@pytest.mark.parametrize("range_uj", [0, -1])
def test_a_counter_that_wraps_nowhere_is_refused(tmp_path: Path, range_uj: int) -> None:
    with pytest.raises(Unavailable, match="must be above 0"):
        rapl.detect(package(tmp_path, 0, max_energy_range_uj=range_uj))


@pytest.mark.parametrize("current", [-1_600_000, 1_600_000])
def test_drivers_disagree_about_the_sign_of_a_discharge(tmp_path: Path, current: int) -> None:
    assert the(battery.detect(supply(tmp_path, "BAT0", current_now=current))).read() == pytest.approx(18_240)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_a_battery_that_does_not_discharge_tells_nothing_of_the_board(tmp_path: Path, status: str) -> None:
    source = the(battery.detect(supply(tmp_path, "BAT0", status=status)))
    with pytest.raises(Unavailable, match="does not discharge"):
        source.read()


def test_a_mouse_and_the_mains_are_no_battery_of_the_board(tmp_path: Path) -> None:
    supply(supply(tmp_path, "hidpp_battery_0", scope="Device"), "AC", type="Mains")
    assert battery.detect(tmp_path) is None
    assert the(battery.detect(supply(tmp_path, "BAT0", scope="System"))).sensor.scope == "battery"


@pytest.mark.parametrize(
    ("there", "name", "celsius"),
    [
        ({"cpu_thermal": 48_156, "gpu_thermal": 60_000, "tj_thermal": 50_000}, "tj-thermal", 50.0),
        ({"AO_therm": 41_500, "CPU_therm": 34_000, "PMIC_Die": 100_000}, "CPU-therm", 34.0),
        ({"BCPU_therm": 35_000, "MCPU_therm": 36_000, "Tdiode_tegra": 40_000}, "MCPU-therm", 36.0),
        ({"PMIC_Die": 100_000}, None, None),
        ({"cpu_thermal": -256_000, "soc_thermal": 41_000}, "soc-thermal", 41.0),
        ({"one": 20_000, "other": 30_000}, "other", 30.0),
    ],
)
def test_the_processors_own_temperature_is_taken(
    tmp_path: Path, there: dict[str, int], name: str | None, celsius: float | None
) -> None:
    source = thermal.detect(zones(tmp_path, **there))
    assert (source and source.sensor.name, source and source.read()) == (name, celsius)


def test_a_zone_that_refuses_to_be_read_is_passed_over_and_one_that_is_switched_off_later_is_an_error(
    tmp_path: Path,
) -> None:
    zones(tmp_path, cpu_thermal=45_000, soc_thermal=40_000)
    refusing = tmp_path / "sys/class/thermal/thermal_zone9"
    tree(refusing, {"type": "tj-thermal"})
    (refusing / "temp").symlink_to("/proc/self/mem")  # reading it is an error of input and output
    source = the(thermal.detect(tmp_path))
    assert source.sensor.name == "cpu-thermal"
    tree(tmp_path, {"sys/class/thermal/thermal_zone0/temp": -256_000})
    with pytest.raises(Unavailable, match="switched off"):
        source.read()


def test_over_current_events_add_up(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon7"
    root = tree(tmp_path, {f"{chip}/name": "soctherm_oc", **{f"{chip}/oc{n}_event_cnt": n for n in (1, 2, 3)}})
    source = the(soctherm.detect(root))
    assert (source.sensor.quantity, source.read()) == ("throttling", 6)


@pytest.mark.parametrize("detect", [ina2xx.detect, rapl.detect, battery.detect, thermal.detect, soctherm.detect])
def test_what_a_board_has_not_is_none(tmp_path: Path, detect: Callable[[Path], object]) -> None:
    assert detect(tmp_path) is None


def test_cores_of_two_kinds_have_the_faster_clock_and_both_governors(tmp_path: Path) -> None:
    cores = {0: ("schedutil", 1_800_000), 4: ("performance", 2_400_000)}
    for core, (governor, khz) in cores.items():
        policy = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        tree(tmp_path, {f"{policy}/scaling_governor": governor, f"{policy}/scaling_cur_freq": khz})
    assert cpufreq.frequency_hz(tmp_path) == 2_400_000_000
    assert cpufreq.governor(tmp_path) == "performance, schedutil"
    assert cpufreq.power_mode(tmp_path) is None
    assert cpufreq.power_mode(tree(tmp_path, {"var/lib/nvpmodel/status": "pmode:0002"})) == "pmode:0002"
