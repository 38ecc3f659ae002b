from __future__ import annotations

import numpy as np
import pytest
from edgepress_host.techniques.quantize.ranges import BINS, by_entropy, by_percentile, ranges
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays


def spread(values, method, *, percentile=99.9, whole=()):
    """Range of one tensor that arrives in three batches."""
    parts = np.array_split(np.asarray(values, np.float32), 3)
    return ranges(lambda: ({"t": part} for part in parts if part.size), method, percentile=percentile, whole=whole)["t"]


def with_outlier():
    values = np.random.default_rng(0).standard_normal(100_000)
    values[7] = 50.0
    return values


def test_minmax_is_what_was_seen():
    assert spread([1, 5, -3, 2], "minmax") == (-3.0, 5.0)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_one_outlier_does_not_stretch_the_range(method):
    low, high = spread(with_outlier(), method)
    assert high < 8
    assert low < -2


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_inputs_and_outputs_keep_their_full_range(method):
    assert spread(with_outlier(), method, whole={"t"})[1] == 50.0


def test_percentile_leaves_out_the_stated_share():
    low, high = spread(np.linspace(0, 1, 100_001), "percentile", percentile=90.0)
    assert low == pytest.approx(0.05, abs=2 / BINS)
    assert high == pytest.approx(0.95, abs=2 / BINS)


def test_what_a_relu_cut_off_does_not_choose_the_range():
    positive = np.abs(np.random.default_rng(1).standard_normal(100_000))
    values = np.concatenate([np.zeros(900_000), positive])
    low, high = spread(values, "entropy")
    assert low == 0
    assert high > 2


@given(arrays.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32)))
def test_no_method_leaves_what_was_seen(values):
    seen = float(values.min()), float(values.max())
    for method in ("minmax", "percentile", "entropy"):
        low, high = spread(values, method)
        slack = 1e-5 * max(1.0, abs(seen[0]), abs(seen[1]))
        assert seen[0] - slack <= low <= high <= seen[1] + slack


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.int64, 1024, elements=st.integers(0, 1000)), st.floats(50.5, 100))
def test_histograms_of_any_shape_give_a_range(counts, percentile):
    histogram = counts.copy()
    histogram[3] += 1
    for low, high in (by_percentile(histogram, (-1.0, 1.0), percentile), by_entropy(histogram, (-1.0, 1.0))):
        assert -1 <= low < high <= 1
