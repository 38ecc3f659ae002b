"""Makes `measure_lab` importable under pytest's importlib mode, and gives each test its lab and its boards."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from measure_lab import FIXTURES, lab, misbehaving_runtime  # noqa: F401 - fixtures of these tests


@pytest.fixture(scope="session")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boards")
    with tarfile.open(FIXTURES / "boards/trees.tar.gz") as trees:
        trees.extractall(folder, filter="data")
    return folder
