"""The command line as a user runs it: real processes, a real controller with its broker, real agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgepress_host import variants
from edgepress_host.choice.budget import Budget
from edgepress_host.client import ready
from line import Line, Shell
from nets import INPUTS, classifier
from safetensors.numpy import load_file, save_file

QUICK = ("--windows", "1", "--window-s", "0.05")


@pytest.fixture(scope="session")
def model() -> Callable[[Path, int], Path]:
    """Writes a small classifier with so many hidden units."""

    return classifier


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
