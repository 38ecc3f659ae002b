"""The command line as a user runs it: real processes, a real controller with its broker, real agents."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import onnx
import pytest
from edgepress_host import ready, variants
from edgepress_host.budget import Budget
from edgepress_host.cli import main
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

QUICK = ("--windows", "1", "--window-s", "0.05")
INPUTS, CLASSES = 16, 4


class Shell:
    """Runs `edgepress` on one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.environment = {**os.environ, "EDGEPRESS_HOME": str(data_dir), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        self.environment.pop("EDGEPRESS_BROKER", None)

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "edgepress_host.cli", *map(str, arguments)]

    def run(self, *arguments: object, expect: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Go through `main` in this process, which saves each test the start of an interpreter."""
        words = [str(argument) for argument in arguments]
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            contextlib.chdir(cwd or Path.cwd()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as left,
        ):
            main(words)
        assert left.value.code == expect, (out.getvalue(), err.getvalue())
        return subprocess.CompletedProcess(words, expect, out.getvalue(), err.getvalue())

    def json(self, *arguments: object, expect: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect).stdout)

    def error(self, *arguments: object, expect: int = 2) -> str:
        """The one line of a command that fails."""
        lines = self.run(*arguments, expect=expect).stderr.strip().splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], lines
        return lines[-1].removeprefix("error: ")


@pytest.fixture(scope="session")
def model() -> Callable[[Path, int], Path]:
    """Writes a small classifier with so many hidden units."""

    def write(path: Path, hidden: int) -> Path:
        generator = np.random.default_rng(7)
        first = generator.standard_normal((INPUTS, hidden)).astype(np.float32)
        second = generator.standard_normal((hidden, CLASSES)).astype(np.float32)
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "first"], ["a"]),
                helper.make_node("Relu", ["a"], ["b"]),
                helper.make_node("MatMul", ["b", "second"], ["y"]),
            ],
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
            [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(made, path)
        return path

    return write


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Callable[[Path, int], Path]) -> Path:
    """What a compress run leaves: the original, a smaller one, and one whose golden vectors are not its own."""
    place = tmp_path_factory.mktemp("variants")
    made = [_result(place, model(place / f"{name}.onnx", hidden), name) for name, hidden in HIDDEN.items()]
    golden = place / f"{made[-1].golden.file}"  # type: ignore[union-attr]
    vectors = load_file(golden)
    vectors["output.0"] = vectors["output.0"] + 100
    save_file(vectors, golden)
    x = np.random.default_rng(1).standard_normal((64, INPUTS)).astype(np.float32)
    y = _run(place / "original.onnx", x).argmax(axis=1).astype(np.int64)
    save_file({"x": x, "y": y}, place / "evaluation.safetensors")
    listed = variants.Variants(
        recipe_digest="0" * 64,
        model="tests:small",
        metric="top1",
        seed=0,
        max_drop=0.05,
        budget=Budget(max_accuracy_drop=0.9, minimise="file_bytes"),
        evaluation=variants.EvaluationFile(file="evaluation.safetensors", samples=len(x)),
        variants=tuple(made),
    )
    variants.write(place, listed)
    return place


HIDDEN = {"original": 512, "small": 8, "broken": 4}


def _result(place: Path, path: Path, name: str) -> variants.VariantResult:
    read = ready.read(path, place)
    assert read.golden is not None
    return variants.VariantResult(
        name=name,
        format="onnx",
        verdict="ok",
        reason="made by a test",
        steps=(),
        kept_steps=0,
        seconds=0.0,
        file=path.name,
        sha256=read.sha256,
        accuracy=1.0 if name == "original" else 0.5,
        file_bytes=path.stat().st_size,
        inputs=read.inputs,
        outputs=read.outputs,
        golden=variants.GoldenFile(file=read.golden.path.name, samples=8, atol=read.golden.atol, rtol=read.golden.rtol),
    )


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: np.ndarray = session.run(None, {"x": x})[0]
    return outputs


class Line(Shell):
    """A controller and agents around one data directory."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.run("keys", "init")
        self.controller = subprocess.Popen(
            self.command("serve"), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.controller.stdout is not None
        assert self.controller.stdout.readline()
        self.broker = self._broker()

    def _broker(self) -> str:
        import httpx

        running = msgspec.json.decode((self.data_dir / "controller.json").read_bytes())
        broker: str = httpx.get(f"{running['url']}/v1/health", trust_env=False).json()["broker"]
        return broker

    def start_agent(self, name: str) -> None:
        given = {
            "broker": self.broker,
            "state-dir": self.data_dir.parent / name,
            "trust": self.data_dir / "keys" / "edgepress.pub",
            "measure-lock": self.data_dir.parent / "measure.lock",
            "reconnect-max": 2,
        }
        options = [word for option, value in given.items() for word in (f"--{option}", str(value))]
        with (self.data_dir.parent / f"{name}.log").open("ab") as log:
            self.agents[name] = subprocess.Popen(
                [sys.executable, "-m", "edgepress_agent", "run", "--id", name, *options],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def stop_agent(self, name: str) -> None:
        process = self.agents.pop(name)
        process.terminate()
        process.wait(10)

    def wait_for(self, **presence: bool) -> None:
        """Wait until devices are online, or offline, by the controller's own long poll."""
        from edgepress_host.client import connect

        def seen() -> bool:
            online = {view.id: view.online for view in client.devices()}
            return all(online.get(name.replace("_", "-")) == wanted for name, wanted in presence.items())

        with connect(self.data_dir, print) as client:
            client.follow(seen, tick_s=5.0)

    def stop(self) -> None:
        for name in list(self.agents):
            self.stop_agent(name)
        self.controller.send_signal(signal.SIGTERM)
        self.controller.wait(15)
        assert self.controller.stdout is not None
        self.controller.stdout.close()


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A running fleet: pi-1 and pi-2 online, sleeper known and offline."""
    made = Line(tmp_path_factory.mktemp("line") / "data")
    try:
        for name in ("pi-1", "pi-2", "sleeper"):
            made.start_agent(name)
        made.wait_for(pi_1=True, pi_2=True, sleeper=True)
        made.stop_agent("sleeper")
        made.wait_for(sleeper=False)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def profiled(line: Line, folder: Path) -> dict[str, Any]:
    """What `edgepress profile DIR --json` prints for the two boards that are online."""
    answer: dict[str, Any] = line.json("profile", folder, "--devices", "pi-1,pi-2", *QUICK)
    return answer


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A data directory where no controller runs."""
    return Shell(tmp_path / "home")
