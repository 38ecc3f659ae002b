from __future__ import annotations

import pytest
import technique_lab
from edgepress_host.techniques.cluster import Cluster
from technique_lab import step_of


@pytest.fixture
def pressed(bench):
    """Apply cluster; returns the model and what it noted. `x` stands in for the samples of all splits."""
    return lambda model, x=None, **options: technique_lab.pressed(step_of(Cluster, **options), model, bench, x)
