"""Makes `measure_lab` importable under pytest's importlib mode, and gives each test its lab and its boards."""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from edgepress_agent import runtimes

sys.path.insert(0, str(Path(__file__).parent))

from measure_lab import FIXTURES, Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def misbehaving_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the test runtime as a user would: on the path of the agent and of its children."""
    plugin = str(FIXTURES / "plugin")
    monkeypatch.syspath_prepend(plugin)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [plugin, os.environ.get("PYTHONPATH", "")])))
    runtimes.every.cache_clear()
    yield
    runtimes.every.cache_clear()


@pytest.fixture(scope="session")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boards")
    with tarfile.open(FIXTURES / "boards/trees.tar.gz") as trees:
        trees.extractall(folder, filter="data")
    return folder
