from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from edgepress_models import fashion_mnist, lenet5, train, training
from edgepress_models.zoo import ZOO

SHORTEN = """
import signal, sys
from edgepress_models import fashion_mnist, train

whole, reads = fashion_mnist.load, []
out, number = sys.argv[1:]

def short(split):
    reads.append(split)
    if reads.count("validate") == int(number):
        print("waiting", flush=True)
        signal.pause()
    images, labels = whole(split)
    return images[:1024], labels[:1024]

fashion_mnist.load = short
train.main(["lenet5", "--epochs", "3", "--out", out])
"""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shorten every split to its first 1,024 images, and note the order in which splits are read."""
    whole, noted = fashion_mnist.load, []

    def short(split: str) -> tuple[np.ndarray, np.ndarray]:
        noted.append(split)
        images, labels = whole(split)
        return images[:1024], labels[:1024]

    monkeypatch.setattr(fashion_mnist, "load", short)
    return noted


def run(out: Path, *options: str) -> dict[str, object]:
    done = CliRunner().invoke(train.main, ["lenet5", "--out", str(out), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads((out / "lenet5.json").read_text())


def test_a_run_leaves_weights_and_what_it_measured(tmp_path: Path, reads: list[str]) -> None:
    record = run(tmp_path, "--epochs", "2", "--seed", "3")
    model = lenet5.build()
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "lenet5.safetensors"))
    assert training.measure(model, ZOO["lenet5"], "test") == record["test_accuracy"]
    assert training.measure(model, ZOO["lenet5"], "validate") == record["validate_accuracy"]
    assert record | {"epochs": 2, "seed": 3, "threads": 1, "torch": torch.__version__, "params": 61_706} == record
    assert record["data"] == "edgepress_models.fashion_mnist:load"
    assert not list(tmp_path.glob("*.resume"))


def test_test_is_read_once_and_last(tmp_path: Path, reads: list[str]) -> None:
    run(tmp_path, "--epochs", "2")
    assert reads == ["train", "validate", "validate", "test"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path, reads: list[str]) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(tmp_path / name, "--epochs", "1", "--seed", seed)
    a, b, c = ((tmp_path / name / "lenet5.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def killed_in_epoch(number: int, out: Path) -> None:
    """Train until the epoch's validation, and kill the process there."""
    command = [sys.executable, "-c", SHORTEN, str(out), str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "waiting\n" in process.stdout
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_training_goes_on_to_the_same_weights_and_adds_its_seconds(tmp_path: Path, reads: list[str]) -> None:
    whole = run(tmp_path / "whole", "--epochs", "3")
    out = tmp_path / "parts"
    killed_in_epoch(3, out)
    kept = torch.load(out / "lenet5.resume", weights_only=True)
    assert kept["epoch"] == 2
    kept["seconds"] += 1000
    torch.save(kept, out / "lenet5.resume")
    reads.clear()
    went_on = run(out, "--epochs", "3")
    assert reads == ["train", "validate", "test"]
    weights = [(tmp_path / name / "lenet5.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert went_on["validate_accuracy"] == whole["validate_accuracy"]
    assert 1000 < went_on["seconds"] < 1100


def test_a_kept_training_with_other_options_is_refused(tmp_path: Path, reads: list[str]) -> None:
    killed_in_epoch(2, tmp_path)
    done = CliRunner().invoke(train.main, ["lenet5", "--epochs", "4", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {tmp_path}/lenet5.resume keeps a training that was stopped, with epochs 3")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04 cut"])
def test_a_kept_training_that_cannot_be_read_is_one_line(content: bytes, tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "lenet5.resume").write_bytes(content)
    done = CliRunner().invoke(train.main, ["lenet5", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr == f"error: {tmp_path}/lenet5.resume is not the state of a training that can go on: delete it\n"


@pytest.mark.parametrize("arguments", [["alexnet"], ["lenet5", "--epochs", "0"]])
def test_a_mistake_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(train.main, arguments)
    assert done.exit_code == 2
    assert "Error: Invalid value" in done.stderr
