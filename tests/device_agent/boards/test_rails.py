"""Which rails of a Jetson make up its power: the total, and never a parent beside its children."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from boards_lab import tree
from edgepress_agent import sensors
from edgepress_agent.board import identity
from edgepress_agent.sensors import ina3221, ina3221x
from edgepress_protocol.errors import Unavailable


def older(folder: Path, *chips: dict[str, int]) -> Path:
    """JetPack 4: NVIDIA's own driver, power per rail in mW; chips of three channels each."""
    for address, rails in enumerate(chips, 40):
        chip = f"sys/bus/i2c/drivers/ina3221x/0-00{address}/iio:device{address - 40}"
        for channel, (name, mw) in enumerate(rails.items()):
            tree(folder, {f"{chip}/rail_name_{channel}": name, f"{chip}/in_power{channel}_input": mw})
    return folder


def newer(folder: Path, *chips: dict[str, int], first: int = 1) -> Path:
    """JetPack 5 and later: hwmon, here with 5 V on each rail."""
    for number, rails in enumerate(chips, first):
        chip = f"sys/class/hwmon/hwmon{number}"
        tree(folder, {f"{chip}/name": "ina3221", f"{chip}/in7_label": "sum of shunt voltages"})
        for channel, (name, milliampere) in enumerate(rails.items(), 1):
            tree(
                folder,
                {
                    f"{chip}/in{channel}_label": name,
                    f"{chip}/in{channel}_enable": 1,
                    f"{chip}/in{channel}_input": 5000,
                    f"{chip}/curr{channel}_input": milliampere,
                },
            )
    return folder


TX2 = (
    {"VDD_SYS_GPU": 152, "VDD_SYS_SOC": 457, "VDD_4V0_WIFI": 19},
    {"VDD_IN": 2177, "VDD_SYS_CPU": 305, "VDD_SYS_DDR": 585},
)
AGX_XAVIER = ({"GPU": 100, "CPU": 200, "SOC": 400}, {"CV": 800, "VDDRQ": 1600, "SYS5V": 3200})
XAVIER_NX = ({"VDD_IN": 3600, "VDD_CPU_GPU_CV": 500, "VDD_SOC": 1100},)
NANO = ({"POM_5V_IN": 2118, "POM_5V_GPU": 40, "POM_5V_CPU": 403},)
AGX_ORIN = ({"VDD_GPU_SOC": 10, "VDD_CPU_CV": 20, "VIN_SYS_5V0": 40}, {"NC": 0, "VDDQ_VDD2_1V8AO": 80, "NC ": 0})


@pytest.mark.parametrize(("chips", "total_mw"), [(TX2, 2177), (AGX_XAVIER, 6300), (XAVIER_NX, 3600), (NANO, 2118)])
def test_the_total_of_older_l4t(tmp_path: Path, chips: tuple[dict[str, int], ...], total_mw: int) -> None:
    source = ina3221x.detect(older(tmp_path, *chips))
    assert source is not None
    assert (source.sensor.scope, source.read()) == ("module", total_mw)


@pytest.mark.parametrize(
    ("chips", "total_mw"), [(XAVIER_NX, 5 * 3600), (AGX_XAVIER, 5 * 6300), (AGX_ORIN, 5 * 70), (AGX_ORIN[::-1], 5 * 70)]
)
def test_the_total_by_hwmon(tmp_path: Path, chips: tuple[dict[str, int], ...], total_mw: int) -> None:
    """The numbers of hwmon move between boots, and so may the order of the chips."""
    source = ina3221.detect(newer(tmp_path, *chips, first=len(chips) + 7))
    assert source is not None
    assert (source.sensor.scope, source.read()) == ("module", pytest.approx(total_mw))


def test_a_parent_rail_is_never_added_to_its_children(boards: Path) -> None:
    def reads(name: str) -> float:
        source = sensors.power(sensors.found(boards / name))
        assert source is not None
        return source.read()

    assert reads("orin-nano") == pytest.approx(4984 * 1008 / 1000)
    assert reads("agx-orin") == pytest.approx((19048 * 160 + 19048 * 40 + 4968 * 953) / 1000)
    assert reads("nano") == 2118


def test_a_nano_of_2_gb_has_no_sensor(boards: Path, tmp_path: Path) -> None:
    root = tmp_path / "nano"
    shutil.copytree(boards / "nano", root)
    shutil.rmtree(root / "sys/bus/i2c")
    assert sensors.power(sensors.found(root)) is None
    assert sensors.look(root).troubles == ()
    compatible = ["nvidia,p3542-0000+p3448-0003", "nvidia,jetson-nano-2gb", "nvidia,tegra210"]
    assert identity.kind(compatible, "aarch64") == "jetson-nano-2gb"


@pytest.mark.parametrize(
    ("compatible", "kind"),
    [
        ("nvidia,p3449-0000-b00+p3448-0000-b00", "jetson-nano"),
        ("nvidia,p2597-0000+p3310-1000", "jetson-tx2"),
        ("nvidia,p3509-0000+p3636-0001", "jetson-tx2-nx"),
        ("nvidia,p2972-0000", "jetson-agx-xavier"),
        ("nvidia,p2822-0000+p2888-0001", "jetson-agx-xavier"),
        ("nvidia,p3509-0000+p3668-0000", "jetson-xavier-nx"),
        ("nvidia,p3737-0000+p3701-0000", "jetson-agx-orin"),
        ("nvidia,p3768-0000+p3767-0000", "jetson-orin-nx"),
        ("nvidia,p3768-0000+p3767-0005-super", "jetson-orin-nano"),
        ("raspberrypi,4-compute-module", "raspberry-pi-cm4"),
        ("raspberrypi,model-zero-2-w", "raspberry-pi-zero-2-w"),
    ],
)
def test_the_module_decides_the_kind(compatible: str, kind: str) -> None:
    assert identity.kind([compatible, "nvidia,tegra"], "aarch64") == kind


def test_a_disabled_channel_is_left_out_and_a_negative_one_counts(boards: Path, tmp_path: Path) -> None:
    root = tmp_path / "orin"
    shutil.copytree(boards / "orin-nano", root)
    chip = root / "sys/class/hwmon/hwmon1"
    (chip / "in2_enable").write_text("0\n")
    (chip / "curr3_input").unlink()
    source = ina3221.detect(root)
    assert source is not None
    assert source.read() == pytest.approx(4984 * 1008 / 1000)
    (chip / "curr1_input").write_text("-8\n")
    assert source.read() == pytest.approx(4984 * -8 / 1000)


def test_a_channel_that_answers_enodata_is_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system that a test can have answers so: the kernel's driver does, for a channel that is off."""
    root = newer(tmp_path, *XAVIER_NX)
    off = "curr2_input"
    opened = Path.open

    def refuse(path: Path, *how: object, **more: object) -> object:
        if path.name == off:
            raise OSError(errno.ENODATA, "No data available")
        return opened(path, *how, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    source = ina3221.detect(root)
    assert source is not None
    assert source.read() == pytest.approx(5 * 3600)
    off = "curr1_input"
    with pytest.raises(Unavailable, match="No data available"):
        source.read()
    with pytest.raises(Unavailable, match="VDD_CPU_GPU_CV, VDD_SOC make up the total is not known"):
        ina3221.detect(root)


def test_rails_that_nobody_described_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="VDD_A, VDD_B"):
        ina3221x.detect(older(tmp_path, {"VDD_A": 1, "VDD_B": 2, "NC": 3}))
