from __future__ import annotations

import prune_zoo as zoo
import pytest
from prune_lab import bench_of


@pytest.fixture(scope="session")
def coupled():
    return zoo.trained(zoo.seeded(zoo.Coupled))


@pytest.fixture(scope="session")
def encodes():
    return zoo.trained(zoo.seeded(zoo.Encodes))


@pytest.fixture(scope="session")
def stack():
    return zoo.trained(zoo.seeded(zoo.Stack))


@pytest.fixture
def notes():
    return []


@pytest.fixture
def bench(notes, coupled):
    return bench_of(coupled, notes.append)
