"""Whatever a kernel, a firmware or a broken file says: a number that is right, or one clear error, and nothing else."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from edgepress_agent import sensors
from edgepress_agent.board import cpufreq, identity, mailbox, memory, probe, proc, sysfs, telemetry
from edgepress_agent.sensors import pi_throttled, pmic
from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Device
from edgepress_protocol.messages import Telemetry
from hypothesis import example, given, settings
from hypothesis import strategies as st

numbers = st.one_of(
    st.integers().map(str),
    st.sampled_from(
        ["0", "-0", "-256000", "+5", "1_000", "0x10", "1e3", "٣", "½", "nan", "inf", "-", "", " ", "9" * 5000]
    ),
)
texts = st.one_of(numbers, st.text(max_size=60))
hostile = st.one_of(
    texts.map(str.encode),
    st.binary(max_size=80),
    st.sampled_from([b"\0", b"\n\n", b"\xff\xfe\xfd", b"5\0"]),
)


@contextmanager
def holding(data: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


@given(hostile)
@example(b"-8\n")
@example(b"9223372036854771712")
@example(b"1" * (2 << 20))
def test_a_file_holds_a_decimal_number_or_is_an_error(data: bytes) -> None:
    with holding(data) as path:
        try:
            value = sysfs.number(path)
        except Unavailable as error:
            assert len(str(error)) < 400
            assert "\n" not in str(error)
            return
    assert int(data.decode().strip("\0 \t\r\n")) == value
    assert -(2**63) < value * 1000 < 2**63, "it fits into a message"
    assert math.isfinite(value / 1000)


@given(hostile)
def test_a_name_is_one_printable_line(data: bytes) -> None:
    with holding(data) as path:
        try:
            name = sysfs.read_name(path)
        except Unavailable:
            return
    assert name is None or (name.isprintable() and 0 < len(name) <= 64 and name == name.strip())


@pytest.mark.parametrize("path", ["/proc/self/mem", "/"])
def test_a_file_that_refuses_is_an_error(path: str) -> None:
    for read in (sysfs.read_text, sysfs.read_int, sysfs.number, sysfs.read_name):
        with pytest.raises(Unavailable):
            read(Path(path))
    assert not sysfs.readable(Path(path))


@given(texts)
def test_throttle_bits_are_hexadecimal_or_an_error(answer: str) -> None:
    for text in (answer, f"throttled={answer}", f"throttled=0x{answer}"):
        try:
            bits = pi_throttled.bits(text)
        except Unavailable as error:
            assert "\n" not in str(error)
            continue
        assert 0 <= bits < 2**32
        assert pi_throttled.words(bits)


rails = st.lists(
    st.tuples(
        st.sampled_from(["3V3_SYS", "VDD_CORE", "EXT5V", "BATT", "é", "A_V"]),
        st.sampled_from("AV"),
        st.sampled_from(["current", "volt", "power"]),
        st.one_of(numbers, st.floats().map(str), st.floats(-100, 100).map("{:.8f}".format)),
    ),
    max_size=8,
)


@given(rails, st.text(max_size=10))
def test_rails_are_finite_and_pair_or_are_left_out(lines: list[tuple[str, str, str, str]], noise: str) -> None:
    answer = noise.join(
        f" {name}_{unit} {kind}({i})={value}{unit}\n" for i, (name, unit, kind, value) in enumerate(lines)
    )
    found = pmic.rails_mw(answer)
    assert all(math.isfinite(mw) for mw in found.values())
    assert set(found) <= {name for name, *_ in lines}


@given(st.binary(max_size=1100))
def test_an_answer_of_the_firmware_is_a_text_or_an_error(message: bytes) -> None:
    for data in (message, mailbox.request("pmic_read_adc")[:4] + b"\0\0\0\x80\x80\0\3\0" + message):
        try:
            text = mailbox.answer(data)
        except Unavailable:
            continue
        assert "\0" not in text


@given(st.text(max_size=1100))
def test_a_command_for_the_firmware_fits_or_is_refused(command: str) -> None:
    try:
        message = mailbox.request(command.encode("utf-8", "replace").decode())
    except Unavailable:
        return
    assert len(message) == 24 + 1024 + 4


FILES: tuple[tuple[str, Callable[[Path], object]], ...] = (
    ("proc/uptime", proc.uptime_s),
    ("proc/loadavg", proc.load_1min),
    ("proc/meminfo", memory.used_bytes),
    ("proc/self/cgroup", memory.read),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", cpufreq.frequency_hz),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", cpufreq.governor),
    ("var/lib/nvpmodel/status", cpufreq.power_mode),
)


@pytest.mark.parametrize(("name", "read"), FILES)
@settings(max_examples=50)
@given(data=hostile)
def test_files_of_the_machine_hold_what_can_be_sent_or_are_errors(
    name: str, read: Callable[[Path], object], data: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(data)
        try:
            value = read(root)
        except Unavailable as error:
            assert "\n" not in str(error)
            return
        assert not isinstance(value, float) or math.isfinite(value)
        msgspec.msgpack.encode(value)


meminfo = st.lists(
    st.tuples(
        st.sampled_from(["MemTotal", "MemAvailable", "MemFree", "Mem Total"]), texts, st.sampled_from([" kB", "", " B"])
    ),
    max_size=4,
).map(lambda lines: "".join(f"{name}: {value}{unit}\n" for name, value, unit in lines).encode("utf-8", "replace"))


@given(meminfo)
def test_memory_is_an_amount_or_blank(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "proc").mkdir()
        (Path(folder) / "proc/meminfo").write_bytes(data)
        used = memory.used_bytes(Path(folder))
    assert used is None or used >= 0


@given(st.text(max_size=200), st.lists(st.text(max_size=80), max_size=3))
def test_a_board_has_a_kind_and_cores_whatever_its_files_say(cpuinfo: str, compatible: list[str]) -> None:
    named = identity.kind(compatible, "aarch64")
    assert 0 < len(named) <= 64
    assert identity.cores(cpuinfo) >= 0
    identity.cpu(f"CPU implementer: {cpuinfo}\nCPU part: {cpuinfo}\n")


SENSOR_FILES = (
    "sys/class/hwmon/hwmon0/{}",
    "sys/class/thermal/thermal_zone0/{}",
    "sys/class/power_supply/BAT0/{}",
    "sys/class/powercap/intel-rapl:0/{}",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/{}",
    "sys/devices/platform/soc/soc:firmware/{}",
    "fake/vcgencmd/{}",
)
NAMES = (
    ("name", ("ina3221", "ina226", "soctherm_oc", "package-0")),
    ("in1_label", ("VDD_IN",)),
    ("in1_enable", ()),
    ("in1_input", ()),
    ("curr1_input", ()),
    ("power1_input", ()),
    ("update_interval", ()),
    ("oc1_event_cnt", ()),
    ("type", ("Battery", "cpu-thermal")),
    ("status", ("Discharging",)),
    ("temp", ()),
    ("voltage_now", ()),
    ("current_now", ()),
    ("energy_uj", ()),
    ("max_energy_range_uj", ()),
    ("rail_name_0", ("VDD_IN", "POM_5V_IN")),
    ("in_power0_input", ()),
    ("get_throttled", ("throttled=0x0",)),
    ("pmic_read_adc", ("A_A current(0)=1.0A A_V volt(1)=2.0V",)),
)
contents = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(
            st.integers(-(10**6), 10**6).map(lambda n: str(n).encode()), st.sampled_from(usual).map(str.encode), hostile
        )
        if usual
        else st.one_of(st.integers(-(10**6), 10**6).map(lambda n: str(n).encode()), hostile)
        for name, usual in NAMES
    },
)


@settings(max_examples=50)
@given(contents)
def test_no_board_breaks_the_agent(files: dict[str, bytes]) -> None:
    """Every sensor on hostile files: found or a trouble, a finite number or an error, and a message that hosts take."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for pattern in SENSOR_FILES:
            for name, data in files.items():
                path = root / pattern.format(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        for source in sensors.found(root):
            assert source.rate_hz > 0
            assert source.wraps_at_mj is None or source.wraps_at_mj > 0
            try:
                assert math.isfinite(source.read())
            except Unavailable as error:
                assert "\n" not in str(error)
        said = telemetry.read(root, None)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(said), type=Telemetry) == said
        device = probe.inventory(root, device_id="pi", state_dir=root)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(device), type=Device) == device
