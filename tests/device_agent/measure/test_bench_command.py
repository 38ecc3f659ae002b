"""`edgepress-agent bench`: a trial's measurement without a host, in words and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from measure_lab import MODELS, needs_format

QUICK = ("--windows", "2", "--window-s", "0.05")


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgepress_agent", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("name", ["tiny.onnx", "float.tflite"])
def test_a_file_is_measured_here(name):
    needs_format(name.rpartition(".")[2])
    done = bench(MODELS / name, *QUICK, "--threads", "1,2", "--batch", "1", "--layers", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = told["measurement"]
    assert told["noise_floor"] is None
    assert len(found["latency"]["windows"]) == 2
    assert sum(window["runs"] for window in found["latency"]["windows"]) == found["latency"]["runs"]
    assert (found["threads"], [point["threads"] for point in found["sweep"]]) == (1, [2])
    assert found["paced"]["rate_hz"] == 20
    silent = any("tells no times per layer" in note for note in found["notes"])
    assert silent or abs(sum(layer["share"] for layer in found["layers"]) - 1) < 0.01
    assert silent == (name == "float.tflite")
    assert found["accuracy"] is None, "that needs labelled samples"


def test_in_words_with_the_noise_floor_and_what_is_missing_said():
    needs_format("onnx")
    done = bench(MODELS / "tiny.onnx", *QUICK, "--paced", "0", "--provider", "nowhere", "--aa")
    assert done.returncode == 0, done.stderr
    labels = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert {"model", "runtime", "board", "tight loop", "memory", "energy", "guards", "A/A"} <= set(labels)
    assert "at 20 Hz" not in labels
    assert "nowhere" in next(line for line in done.stdout.splitlines() if line.startswith("note"))
    assert "p50 of two processes with this model, 24 pairs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--threads", "1,none"), "expected numbers from 1 to 256"),
        (("--soak", "5"), "--soak 5: at least 120 s"),
        (("--provider", "CUDA!"), "a provider is a word such as cuda"),
        (("--root", "nowhere"), "does not exist. (see edgepress-agent bench --help)"),
        (("--runtime", "nowhere"), "--runtime nowhere: not installed here"),
    ],
)
def test_a_mistake_is_one_line(arguments, line):
    done = bench(MODELS / "tiny.onnx", *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_keeps_its_weights_elsewhere_is_refused_before_the_runtime_sees_it():
    needs_format("onnx")
    done = bench(MODELS / "outside.onnx", *QUICK)
    assert done.returncode == 2
    assert "the file keeps tensors in another file, '../../outside.bin'" in done.stderr


def test_the_runtime_is_chosen_and_what_it_is_fed_is_not_weighed():
    pytest.importorskip("openvino")
    found = {}
    for name in ("openvino", "onnxruntime"):
        done = bench(MODELS / "tiny.onnx", *QUICK, "--paced", "0", "--runtime", name, "--json")
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)["measurement"]
        assert found[name]["runtime"]["name"] == name


def test_a_file_that_is_no_model_is_one_line(tmp_path):
    needs_format("onnx")
    (tmp_path / "torn.onnx").write_bytes(b"torn")
    done = bench(tmp_path / "torn.onnx", *QUICK)
    assert done.returncode in {1, 2}
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
    assert "torn.onnx" in line
