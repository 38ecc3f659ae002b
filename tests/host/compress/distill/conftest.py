from __future__ import annotations

import distill_zoo
import msgspec
import pytest
import technique_lab
from distill_lab import SHORT, distilled
from edgepress_host.press.data import Data


@pytest.fixture(scope="session")
def held_out(bench):
    return technique_lab.held_out(bench)


@pytest.fixture(scope="session")
def alone(bench):
    """A student that hardly hears of the teacher: what the parts are measured against."""
    return distilled(bench, **SHORT, alpha=1e-6)


@pytest.fixture(scope="session")
def values(bench):
    """Labels of three values each, and a teacher of values."""
    data = Data(distill_zoo.load_values, key="distill_zoo:load_values")
    return msgspec.structs.replace(bench, split=data.split, original=distill_zoo.line)
