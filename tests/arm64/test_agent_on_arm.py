"""The agent in a 64-bit Arm userland connects, receives, profiles, reports and activates; no latency of it counts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import userland

MODELS = Path(__file__).resolve().parents[1] / "fixtures" / "models"
QUICK = ("--windows", "1", "--window-s", "0.2", "--timeout", "1200")
pytestmark = pytest.mark.timeout(2400)


def test_probe_knows_that_it_is_emulated(arm_python: Path) -> None:
    done = subprocess.run(
        [arm_python, "-m", "edgepress_agent", "probe", "--json"], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert told["emulated"] is True
    assert (told["board"]["arch"], told["board"]["cpu"]) == ("aarch64", "Cortex-A72")
    assert {runtime["format"] for runtime in told["runtimes"]} == {"onnx", "tflite"}


def test_the_whole_line_on_arm(line: Any, arm_python: Path, tmp_path: Path) -> None:
    line.start_agent("pi", python=arm_python)
    line.wait_for(pi=True)
    (device,) = line.json("devices")["devices"]
    assert device["device"]["board"]["arch"] == "aarch64"

    printed = line.json("profile", MODELS / "tiny.onnx", MODELS / "dense.tflite", *QUICK)
    assert [(one["variant"], one["state"]) for one in printed["trials"]] == [("tiny", "done"), ("dense", "done")]
    for one in printed["measurements"]:
        measurement = one["measurement"]
        assert measurement["emulated"] is True
        assert measurement["golden_max_error"] is not None, "what Arm computes was not held against the host"
        assert measurement["latency"]["p50_ms"] > 0
        assert measurement["memory"]["peak_bytes"] > 0
        assert measurement["energy"] is None

    chosen = line.run("select", "--minimise", "p95_latency_ms").stdout
    assert chosen.count("only emulated on aarch64, and emulated latencies never enter") == 2
    assert "no choice" in chosen

    line.run("deploy", "tiny", "--devices", "all")
    (device,) = line.json("devices")["devices"]
    assert device["active"]["variant"] == "tiny"
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)
    assert asked(line.data_dir.parent / "pi" / "serve.sock", x) == pytest.approx(on_this_machine(x), abs=1e-5)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change into the Arm system")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="a package for bookworm is built with its Python 3.11")
def test_the_package_for_arm_starts_there(arm_python: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(userland.HOME / "root", root, symlinks=True)
    emulator = shutil.which("qemu-aarch64-static") or userland.HOME / "qemu"
    if not Path(emulator).exists():
        pytest.skip("a qemu that needs no library is wanted in a system of its own")
    shutil.copy(emulator, root / "qemu")
    build = [sys.executable, "deploy/deb/build.py", "--arch", "arm64", "--extras", "", "--out", tmp_path]
    subprocess.run(build, cwd=userland.ROOT, check=True)
    (deb,) = tmp_path.glob("edgepress-agent_*_arm64.deb")
    subprocess.run(["dpkg-deb", "--extract", deb, root], check=True)
    started = ["chroot", root, "/qemu", "/opt/edgepress/bin/python", "/opt/edgepress/bin/edgepress-agent", "version"]
    done = subprocess.run(started, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("edgepress-agent "), done.stderr


def test_without_a_way_to_an_arm_system_it_is_skipped_in_words(tmp_path: Path) -> None:
    """A machine on which no program can be found that fetches packages."""
    environment = {**os.environ, "PATH": str(tmp_path)}
    command = [sys.executable, userland.__file__, tmp_path / "arm64"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Arm userland: cannot be made here, so its tests are skipped: ")
    assert done.stdout.count("\n") == 1
    assert (tmp_path / "arm64/why-not").read_text() in done.stdout


def asked(socket: Path, x: np.ndarray) -> list[float]:
    """What the active model answers to an application on the board."""
    question = {"inputs": [{"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}]}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=120) as client:
        answer = client.post("http://board/v2/models/active/infer", json=question).raise_for_status()
    return answer.json()["outputs"][0]["data"]


def on_this_machine(x: np.ndarray) -> list[float]:
    session = onnxruntime.InferenceSession(MODELS / "tiny.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].ravel().tolist()
