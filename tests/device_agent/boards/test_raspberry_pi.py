"""The Raspberry Pi's firmware: rails of the Pi 5, throttle bits, asked by mailbox or by vcgencmd."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest
from boards_lab import tree
from edgepress_agent import sensors
from edgepress_agent.board import mailbox, vcgencmd
from edgepress_agent.sensors import pi_throttled, pmic
from edgepress_protocol.errors import Unavailable


def test_rails_pair_by_name(boards: Path) -> None:
    rails = pmic.rails_mw((boards / "pi5/fake/vcgencmd/pmic_read_adc").read_text())
    assert len(rails) == 12
    assert rails["VDD_CORE"] == pytest.approx(6.22421 * 0.861733 * 1000)
    assert not {"EXT5V", "BATT"} & set(rails)


def test_a_rail_that_is_missing_makes_no_smaller_total(boards: Path, tmp_path: Path) -> None:
    shutil.copytree(boards / "pi5", tmp_path / "pi5")
    source = pmic.detect(tmp_path / "pi5")
    assert source is not None
    assert source.read() == pytest.approx(7239.8, abs=0.1)
    answer = tmp_path / "pi5/fake/vcgencmd/pmic_read_adc"
    answer.write_text(answer.read_text().replace("VDD_CORE_A current(7)=", "VDD_CORE_A current(7)=?"))
    with pytest.raises(Unavailable, match="no reading of VDD_CORE"):
        source.read()
    answer.unlink()
    with pytest.raises(Unavailable):
        source.read()


def test_a_pi_4_knows_no_such_command(boards: Path) -> None:
    assert vcgencmd.ask(boards / "pi4", "pmic_read_adc") is None
    assert pmic.detect(boards / "pi4") is None


@pytest.mark.parametrize(
    ("answer", "bits", "words"),
    [
        ("throttled=0x0", 0, "nothing since boot"),
        ("50000", 0x50000, "under-voltage and throttled since boot"),
        ("throttled=0x80008", 0x80008, "soft temperature limit now; soft temperature limit since boot"),
        ("throttled=0x20002", 0x20002, "frequency capped now; frequency capped since boot"),
    ],
)
def test_throttle_bits(answer: str, bits: int, words: str) -> None:
    assert pi_throttled.bits(answer) == bits
    assert pi_throttled.words(bits) == words


def test_the_kernels_file_is_preferred_to_the_firmware(boards: Path, tmp_path: Path) -> None:
    shutil.copytree(boards / "pi4", tmp_path / "pi4")
    (tmp_path / "pi4/fake/vcgencmd/get_throttled").write_text("throttled=0x1\n")
    source = pi_throttled.detect(tmp_path / "pi4")
    assert source is not None
    assert source.read() == 0x50000


class Firmware:
    """Answers the kernel's mailbox call as a Pi's firmware does: a text in place of the command."""

    def __init__(self, answers: dict[str, str]) -> None:
        self._answers = answers
        self.calls: list[int] = []

    def ioctl(self, descriptor: int, call: int, buffer: bytearray) -> int:
        self.calls.append(call)
        size, code, tag, room, _, _ = struct.unpack_from("=6I", buffer)
        assert (size, code, tag, room) == (len(buffer), 0, 0x00030080, 1024)
        assert buffer[-4:] == bytes(4), "a list of tags ends with a zero"
        command = bytes(buffer[24:-4]).rstrip(b"\0").decode()
        answer = self._answers.get(command, 'error=1 error_msg="Command not registered"').encode()
        struct.pack_into("=6I", buffer, 0, size, 0x80000000, tag, room, 0x80000000 | len(answer), 0)
        buffer[24:-4] = answer.ljust(1024, b"\0")
        return 0


@pytest.fixture
def firmware(boards: Path, monkeypatch: pytest.MonkeyPatch) -> Firmware:
    """A Pi 5's firmware behind every mailbox; the device file itself is a plain one."""
    words = {path.name: path.read_text().strip() for path in (boards / "pi5/fake/vcgencmd").iterdir()}
    made = Firmware(words)
    monkeypatch.setattr(mailbox.fcntl, "ioctl", made.ioctl)
    return made


def test_the_mailbox_is_asked_where_there_is_one(
    boards: Path, firmware: Firmware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "devices", lambda root: [tree(tmp_path, {"vcio": ""}) / "vcio"])
    recorded = (boards / "pi5/fake/vcgencmd/pmic_read_adc").read_text().strip()
    assert vcgencmd.ask(Path("/"), "pmic_read_adc") == recorded
    assert vcgencmd.ask(Path("/"), "get_throttled") == "throttled=0x0"
    assert vcgencmd.ask(Path("/"), "no_such_command") is None
    assert firmware.calls == [0xC0086400] * 3


def test_the_mailbox_that_may_be_used_is_asked(firmware: Firmware, tmp_path: Path) -> None:
    assert mailbox.devices(tmp_path / "root") == []
    root = tree(tmp_path / "root", {"dev/vcio": "", "dev/vcio_gencmd": ""})
    narrow, wide = mailbox.devices(root)
    assert (narrow.name, wide.name) == ("vcio_gencmd", "vcio")
    assert mailbox.ask([tmp_path / "gone", wide], "get_throttled") == "throttled=0x0"


def test_what_is_no_mailbox_is_an_error_in_one_line(tmp_path: Path) -> None:
    """The real system call, on files that are no mailbox."""
    with pytest.raises(Unavailable, match=r"^/dev/null: .*; is the user in group video\?$"):
        mailbox.ask([Path("/dev/null")], "get_throttled")
    with pytest.raises(Unavailable, match="vcio: No such file or directory, /dev/null: Inappropriate ioctl"):
        mailbox.ask([tmp_path / "vcio", Path("/dev/null")], "get_throttled")


PROGRAM = """#!/bin/sh
case "$1" in
    get_throttled) echo throttled=0x50005 ;;
    pmic_read_adc)
        echo 'vc_gencmd_read_response returned 1'
        echo 'error=1 error_msg="Command not registered"'
        exit 1 ;;
    measure_temp) echo "VCHI initialization failed" >&2; exit 255 ;;
    measure_clock) exec sleep 60 ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system with the program and without the mailbox; vcgencmd's own words and exit statuses."""
    (tmp_path / "vcgencmd").write_text(PROGRAM)
    (tmp_path / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(mailbox, "devices", lambda root: [])


@pytest.mark.usefixtures("program")
def test_without_a_mailbox_the_program_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vcgencmd.ask(Path("/"), "get_throttled") == "throttled=0x50005"
    assert vcgencmd.ask(Path("/"), "pmic_read_adc") is None
    with pytest.raises(Unavailable, match="VCHI initialization failed; is the user in group video"):
        vcgencmd.ask(Path("/"), "measure_temp")
    monkeypatch.setattr(vcgencmd, "_TIMEOUT_S", 0.05)
    with pytest.raises(Unavailable, match="measure_clock"):
        vcgencmd.ask(Path("/"), "measure_clock")


def test_this_machine_is_no_pi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mailbox, "devices", lambda root: [])
    assert vcgencmd.ask(Path("/"), "get_throttled") is None


def test_a_pi_that_refuses_its_user_says_so_and_the_rest_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither sensor stops the others: a trouble each."""

    def refuse(root: Path, command: str) -> str:
        raise Unavailable("/dev/vcio: Permission denied; is the user in group video?")

    monkeypatch.setattr(vcgencmd, "ask", refuse)
    zone = "sys/class/thermal/thermal_zone0"
    root = tree(tmp_path, {f"{zone}/type": "cpu-thermal", f"{zone}/temp": 45_000})
    found = sensors.look(root)
    assert [source.sensor.name for source in found.sources] == ["cpu-thermal"]
    assert [line.partition(":")[0] for line in found.troubles] == ["pi_throttled", "pmic"]
