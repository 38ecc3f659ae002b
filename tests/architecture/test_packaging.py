"""What is installed where: a wheel that holds everything, and extras that hold no more than they should."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    """Distributions that requirements lead to, our own extras followed."""
    found: set[str] = set()
    for requirement in requirements:
        name, extras = re.match(r"([A-Za-z0-9._-]+)(?:\[([^]]*)])?", requirement).groups()  # type: ignore[union-attr]
        if name == "edgepress":
            for extra in extras.split(","):
                found |= names(PROJECT["optional-dependencies"][extra.strip()])
        else:
            found.add(name.lower())
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the wheel."""
    place = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = place.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_the_wheel_holds_every_file_of_the_four_packages(wheel: set[str]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "protocol", "host", "device_agent", "models"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    expected = {name.partition("/")[2] for name in tracked}
    assert any(name.endswith(".safetensors") for name in expected)
    assert expected <= wheel
    assert {name.split("/")[0] for name in wheel if not name.startswith("edgepress-")} == {
        "edgepress_protocol",
        "edgepress_host",
        "edgepress_agent",
        "edgepress_models",
    }


def test_a_board_installs_no_torch_and_no_runtime_that_it_did_not_ask_for() -> None:
    base = names(PROJECT["dependencies"])
    agent = base | names(PROJECT["optional-dependencies"]["agent"])
    heavy = {"torch", "onnx", "rich", "fastapi", "sqlalchemy", "cryptography"}
    assert not agent & heavy
    assert not base & {"numpy", "onnxruntime", "ai-edge-litert", "tflite-runtime"}
    assert agent >= {"onnxruntime", "ai-edge-litert"}


def test_tflite_runtime_carries_no_python_marker() -> None:
    """A marker would install nothing, and say nothing, where there is no wheel."""
    assert PROJECT["optional-dependencies"]["tflite-runtime"] == ["tflite-runtime==2.14.0", "numpy<2"]


def test_torch_is_pinned_exactly() -> None:
    (torch,) = [one for one in PROJECT["optional-dependencies"]["host"] if re.match(r"torch\b(?!-)", one)]
    assert re.fullmatch(r"torch==[0-9.]+", torch)
