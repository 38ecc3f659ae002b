"""A fleet whose boards are 64-bit Arm systems under qemu, on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import userland


@pytest.fixture(scope="session")
def arm_python() -> Path:
    """The Arm interpreter, which `make test-arm64` has prepared."""
    if "EDGEPRESS_ARM64" not in os.environ:
        pytest.skip("the agent on 64-bit Arm under qemu is a run of its own: make test-arm64")
    if userland.WHY_NOT.exists():
        pytest.skip(f"no 64-bit Arm userland here: {userland.WHY_NOT.read_text()}")
    return userland.PYTHON


@pytest.fixture
def line(arm_python: Path, tmp_path: Path) -> Iterator[object]:
    """A real controller with a real broker, on this machine's own processor."""
    from line import Line

    made = Line(tmp_path / "fleet" / "data")
    yield made
    for name in ("controller", "pi"):
        log = made.data_dir.parent / f"{name}.log"
        print(f"== {name}\n{log.read_text() if log.exists() else 'never started'}")
    made.stop()
