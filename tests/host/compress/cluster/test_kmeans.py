from __future__ import annotations

import itertools
import time

import compress_zoo
import numpy as np
import torch
from cluster_lab import weight_of
from edgepress_host.techniques.cluster.kmeans import cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

ROWS = arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 30)), elements=st.floats(-8, 8, width=32))


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 6), st.sampled_from(["linear", "density", "random"]), st.booleans())
def test_the_squared_error_never_grows_from_round_to_round(rows, count, start, sparse):
    weights = torch.from_numpy(rows)
    left_out = weights == 0 if sparse else None

    def error(rounds):
        values, taken = cluster(
            weights, count, start=start, chance=torch.Generator().manual_seed(0), left_out=left_out, rounds=rounds
        )
        assert values.shape == (len(rows), count)
        assert bool((values.diff(dim=1) >= 0).all())
        errors = (values.gather(1, taken) - weights).square()
        nearest = (values[:, :, None] - weights[:, None]).square().min(1).values
        assert torch.allclose(errors, nearest)
        return float((errors if left_out is None else errors.masked_fill(left_out, 0.0)).sum())

    errors = [error(rounds) for rounds in (0, 1, 2, 5, 300)]
    assert all(later <= before + 1e-9 for before, later in itertools.pairwise(errors))


def test_k_means_finds_groups_that_lie_apart():
    groups = torch.cat(
        [
            center + 0.01 * torch.randn(50, generator=torch.Generator().manual_seed(1))
            for center in (-3.0, 0.5, 1.0, 7.0)
        ]
    )
    for start in ("density", "random"):
        found = cluster(groups[None], 4, start=start, chance=torch.Generator().manual_seed(0))
        assert torch.allclose(found.values[0], torch.tensor([-3.0, 0.5, 1.0, 7.0]).double(), atol=0.01)


def test_a_million_weights_take_seconds():
    weights = torch.randn(1, 2_000_000, generator=torch.Generator().manual_seed(0))
    started = time.process_time()
    cluster(weights, 256, start="linear", chance=torch.Generator())
    assert time.process_time() - started < 10


def test_the_start_of_k_means_matters(pressed):
    results = {
        start: weight_of(pressed(compress_zoo.build(), bits=6, init=start)[0], "hidden")
        for start in ("linear", "density", "random")
    }
    assert len({tuple(weight.unique().tolist()) for weight in results.values()}) == 3
    # Evenly spaced values reach the rare large weights, as Deep Compression found.
    assert results["linear"].abs().max() > results["density"].abs().max()
