from __future__ import annotations

import pytest
import technique_lab
from edgepress_host.techniques.low_rank import LowRank
from technique_lab import step_of


@pytest.fixture
def pressed(bench):
    """Apply low_rank; returns the model and what it noted. `x` stands in for the samples of all splits."""
    return lambda model, x=None, **options: technique_lab.pressed(step_of(LowRank, **options), model, bench, x)
