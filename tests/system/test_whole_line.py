"""The whole line with nothing of it replaced: real controller, real broker, real agents, real runtimes, real kills."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgepress_protocol.transfer import describe, from_bitmap
from nets import INPUTS, classifier, with_one_weight_altered
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--windows", "1", "--window-s", "0.05")
HIDDEN = 30_000  # of random weights: 2.4 MB that no codec shortens by much, 35 chunks and more


def states(line: Any) -> dict[tuple[str, str], str]:
    return {(one["device"], one["variant"]): one["state"] for one in line.json("trials", "list", "--all")["trials"]}


def until_done(line: Any, count: int) -> None:
    from edgepress_host.client.client import connect

    def done() -> bool:
        trials = client.trials()
        assert not [one for one in trials if one.state in {"failed", "cancelled"}]
        return len([one for one in trials if one.state == "done"]) == count

    with connect(line.data_dir, print) as client:
        client.follow(done, tick_s=5.0)


def test_two_agents_are_served_by_one_broadcast(
    fleets: Callable[..., Any], listen: Callable[..., Any], tmp_path: Path
) -> None:
    line = fleets()
    for name in ("one", "two"):
        line.start_agent(name)
    line.wait_for(one=True, two=True)
    listener = listen(line)
    path = classifier(tmp_path / "big.onnx", HIDDEN)
    line.run("profile", path, *QUICK)
    assert set(states(line).values()) == {"done"}
    blob, _ = describe(path.read_bytes())
    published = {index: count for (wire, index), count in listener.chunks().items() if wire == blob.wire.sha256}
    assert published == dict.fromkeys(range(len(blob.wire.chunks)), 1)
    assert len(published) > 20


def test_an_agent_killed_in_mid_transfer_never_fetches_again_what_it_had(
    fleets: Callable[..., Any], listen: Callable[..., Any], tmp_path: Path
) -> None:
    line = fleets("--bandwidth", 1_000_000)
    line.start_agent("pi")
    line.wait_for(pi=True)
    listener = listen(line)
    path = classifier(tmp_path / "big.onnx", HIDDEN)
    wire = describe(path.read_bytes())[0].wire
    line.run("profile", path, "--no-wait", *QUICK)
    listener.wait(lambda: sum(sha256 == wire.sha256 for sha256, _ in listener.chunks()) >= 15)
    line.kill_agent("pi")
    line.wait_for(pi=False)
    killed_at = len(listener.log)
    line.start_agent("pi")
    until_done(line, 1)
    needs = [one[2] for one in listener.log[killed_at:] if one[0] == "need" and one[2].wire == wire.sha256]
    lacking = from_bitmap(needs[0].missing, len(wire.chunks))
    assert len(lacking) < len(wire.chunks) - 5, "it kept next to nothing"
    fetched_again = {index for (sha256, index) in listener.chunks(killed_at) if sha256 == wire.sha256}
    assert fetched_again <= lacking


def test_a_broker_killed_and_restarted_empty_leaves_a_fleet_that_converges(
    fleets: Callable[..., Any], listen: Callable[..., Any], tmp_path: Path
) -> None:
    line = fleets("--bandwidth", 1_500_000)
    for name in ("one", "two"):
        line.start_agent(name)
    line.wait_for(one=True, two=True)
    listener = listen(line)
    line.run("profile", classifier(tmp_path / "big.onnx", HIDDEN), "--no-wait", *QUICK)
    listener.wait(lambda: len(listener.chunks()) >= 10)
    line.kill_broker()
    until_done(line, 2)
    line.run("deploy", "big", "--devices", "all")
    line.kill_broker()
    line.wait_for(one=True, two=True)
    active = {one["id"]: one["active"]["variant"] for one in line.json("devices")["devices"]}
    assert active == {"one": "big", "two": "big"}


def test_one_altered_weight_changes_the_accuracy_that_the_device_reports(
    fleets: Callable[..., Any], tmp_path: Path
) -> None:
    import onnxruntime

    line = fleets()
    line.start_agent("pi")
    line.wait_for(pi=True)
    path = classifier(tmp_path / "true.onnx", 32)
    altered = with_one_weight_altered(path, tmp_path / "altered.onnx")
    x = np.random.default_rng(3).standard_normal((200, INPUTS)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    labels = session.run(None, {"x": x})[0].argmax(axis=1).astype(np.int64)
    save_file({"x": x, "y": labels}, tmp_path / "labelled.safetensors")
    printed = line.json("profile", path, altered, "--eval", tmp_path / "labelled.safetensors", *QUICK)
    accuracy = {one["variant"]: one["measurement"]["accuracy"]["value"] for one in printed["measurements"]}
    assert accuracy["true"] == 1.0
    assert accuracy["altered"] < 1.0
    assert [one["measurement"]["energy"] for one in printed["measurements"]] == [None, None], (
        "a number without a sensor"
    )


def test_a_file_that_tflite_runtime_runs_wrongly_is_refused_by_its_golden_vectors(fleets: Callable[..., Any]) -> None:
    python = ROOT / ".venv-tflite" / "bin" / "python"
    assert python.exists(), "run `make .venv-tflite/ready` first, as `make test` does"
    line = fleets()
    line.start_agent("litert", "--runtime", "ai-edge-litert")
    line.start_agent("old-pi", python=python)
    line.wait_for(litert=True, old_pi=True)
    wrong = ROOT / "tests" / "fixtures" / "models" / "dynamic.tflite"
    printed = line.json("profile", wrong, *QUICK)
    ended = {one["device"]: (one["state"], one["detail"].partition(":")[0]) for one in printed["trials"]}
    assert ended == {"litert": ("done", ""), "old-pi": ("failed", "golden")}
    assert "golden" in line.error("deploy", "dynamic", "--devices", "old-pi", expect=1)
    views = {one["id"]: one["active"] for one in line.json("devices")["devices"]}
    assert views["old-pi"] is None


def test_an_agent_that_trusts_another_key_obeys_nothing_and_says_so(fleets: Callable[..., Any], tmp_path: Path) -> None:
    line, other = fleets(), fleets()
    line.start_agent("pi", trust=other.data_dir / "keys" / "edgepress.pub")
    line.wait_for(pi=True)
    path = classifier(tmp_path / "small.onnx", 8)
    line.run("profile", path, "--no-wait", *QUICK)
    view = _when(line, lambda view: view.refused)
    assert "not signed by the trusted key" in view.refused
    assert states(line) == {("pi", "small"): "queued"}


def test_versions_are_negotiated(fleets: Callable[..., Any], tmp_path: Path) -> None:
    newer = fleets(speaks=(1, 2))
    newer.start_agent("behind")
    newer.start_agent("ancient", speaks=(0, 0))
    newer.wait_for(behind=True, ancient=True)
    path = classifier(tmp_path / "small.onnx", 8)
    newer.run("profile", path, "--devices", "behind", *QUICK)
    assert states(newer) == {("behind", "small"): "done"}
    refused = {one["id"]: one["refused"] for one in newer.json("devices")["devices"]}
    assert refused["behind"] == ""
    assert refused["ancient"] == (
        "no common protocol version: this side speaks 1 to 2, the other 0; upgrade edgepress on the other side"
    )


def _when(line: Any, condition: Callable[[Any], object]) -> Any:
    """The first device's view, as soon as it is as wanted."""
    from edgepress_host.client.client import connect

    with connect(line.data_dir, print) as client:
        client.follow(lambda: bool(condition(client.devices()[0])), tick_s=5.0)
        return client.devices()[0]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_the_demo_leaves_no_process_behind(how: str, tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys

    import psutil

    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        """
        [model]
        source = "edgepress_models.lenet5:pretrained"
        [data]
        source = "edgepress_models.fashion_mnist:load"
        validate_samples = 100
        test_samples = 100
        [[variant]]
        name = "fp16"
        formats = ["onnx"]
        steps = [{ technique = "quantize", mode = "fp16" }]
        """
    )
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "edgepress_host.cli", "demo", "--out", str(out), "--recipe", str(recipe)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert demo.stdout is not None
    said = []
    for line in demo.stdout:
        said.append(line)
        if "measuring" in line:
            break
    else:
        pytest.fail("ended before it measured:\n" + "".join(said))
    family = psutil.Process(demo.pid).children(recursive=True)
    assert len(family) >= 5, "controller, broker, two agents and a command run by now"
    demo.send_signal(getattr(signal, how))
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [process.cmdline() for process in alive]
    rest = demo.communicate(timeout=20)[0]
    assert demo.returncode == (-signal.SIGKILL if how == "SIGKILL" else 130)
    assert "Traceback" not in rest
