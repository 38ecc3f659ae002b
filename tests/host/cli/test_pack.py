"""`edgepress pack` and `unpack`: the very bytes come back, small, and nothing is written over."""

from pathlib import Path

import pressed
import pytest
from edgepress_host import packing
from edgepress_protocol import codec
from line import Shell

MODEL = pressed.safetensors(
    {
        "fc.weight": pressed.floats(200, 150, pressed.pruned_and_clustered(0.03)),
        "fc.bias": pressed.floats(1, 120, pressed.dense),
    }
)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


def test_a_model_is_packed_and_unpacked_and_its_tensors_are_told_apart(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(MODEL)
    said = shell.run("pack", file).stdout
    packed = tmp_path / "model.safetensors.epc"
    assert "fc.weight" in said
    assert "as container" in said
    assert "short tensors share one frame" in said
    assert len(packed.read_bytes()) < 0.7 * len(codec.encode("zstd", MODEL))
    file.unlink()
    told = shell.json("unpack", packed)
    assert file.read_bytes() == MODEL
    again = shell.json("pack", file, "--out", tmp_path / "again.epc")
    assert told["sha256"] == again["sha256"]
    assert {part["name"]: part["layout"] for part in again["parts"]} == {
        "fc.weight": "blocks",
        "fc.bias": "pooled",
        "graph, short floats, table": "shared",
    }
    assert sum(part["packed_bytes"] or 0 for part in again["parts"]) == again["packed_bytes"] == packed.stat().st_size


def test_what_is_no_model_is_packed_as_zstd_and_comes_back_too(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("\n".join(f"line {i} of a file that is no model" for i in range(200)))
    assert shell.json("pack", file)["form"] == "zstd"
    shell.run("unpack", tmp_path / "notes.txt.epc", "--out", tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == file.read_bytes()


def test_nothing_is_written_over_and_damage_is_one_line(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(MODEL)
    shell.run("pack", file)
    packed = tmp_path / "model.bin.epc"
    assert "exists already" in shell.error("pack", file)
    assert "exists already" in shell.error("unpack", packed)
    assert "--out" in shell.error("unpack", file)
    damaged = bytearray(packed.read_bytes())
    damaged[-1] ^= 1
    packed.write_bytes(damaged)
    file.unlink()
    assert "nothing was written" in shell.error("unpack", packed, expect=1)
    packed.write_bytes(b"something else")
    assert "this is none" in shell.error("unpack", packed, expect=1)
    assert not file.exists()


@pytest.mark.parametrize("content", [b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x04\x00junk", b"", b"EPC"])
def test_junk_is_rejected(content: bytes) -> None:
    with pytest.raises(packing.Rejected):
        packing.unpack(content)


def test_an_empty_file_comes_back() -> None:
    assert packing.unpack(packing.pack(b"").content) == b""
