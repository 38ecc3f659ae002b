from __future__ import annotations

import numpy as np
import pytest
from edgepress_host.techniques.quantize.ranges import BINS, by_entropy, by_mse, by_percentile, ranges
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


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
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
    for method in ("minmax", "percentile", "entropy", "mse"):
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


def lost_information(values, stop, levels):
    """Divergence of values clipped to `stop` from what is left of them in so many levels, as TensorRT defines it."""
    bins = 2048
    counts = np.histogram(values, bins=bins, range=(0, values.max()))[0].astype(float)
    # What a ReLU cut off to nought does not count.
    counts[0] = counts[1]
    kept = round(stop / values.max() * bins)
    p = counts[:kept].copy()
    p[-1] += counts[kept:].sum()
    q = np.zeros(kept)
    for part in np.array_split(np.arange(kept), levels):
        held = part[counts[part] > 0]
        q[held] = counts[held].sum() / max(1, len(held))
    p, q = p / p.sum(), q / q.sum()
    return float((p[p > 0] * np.log(p[p > 0] / np.maximum(q[p > 0], 1e-9))).sum())


def test_entropy_loses_less_information_than_a_percentile_and_other_ranges():
    values = np.abs(with_outlier())
    low, high = spread(values, "entropy")
    assert low == pytest.approx(0, abs=1e-3)
    least = lost_information(values, high, 256)
    for other in (np.percentile(values, 99.95), 2 * high, 4 * high, values.max()):
        assert least < 0.5 * lost_information(values, other, 256), other


def squared_error(values, range_, levels):
    step = (range_[1] - range_[0]) / (levels - 1)
    rounded = range_[0] + np.round((np.clip(values, *range_) - range_[0]) / step) * step
    return float(((values - rounded) ** 2).sum())


@pytest.mark.parametrize("levels", [16, 256])
def test_mse_loses_less_than_the_whole_range_and_than_other_shares_of_it(levels):
    values = np.random.default_rng(0).laplace(size=20_000)
    full = float(values.min()), float(values.max())
    histogram = np.histogram(values, bins=BINS, range=full)[0]
    chosen = by_mse(histogram, full, levels=levels)
    least = squared_error(values, chosen, levels)
    assert least < 0.95 * squared_error(values, full, levels)
    for share in (0.05, 0.1, 0.2, 0.4, 0.8):
        assert least <= 1.01 * squared_error(values, (full[0] * share, full[1] * share), levels)
    symmetric = by_mse(histogram, full, levels=levels, symmetric=True)
    assert symmetric[0] == -symmetric[1]
    assert symmetric[1] < max(-full[0], full[1])


def test_symmetric_ranges_lie_evenly_around_zero():
    run = [{"t": np.array([-1, 3], np.float32)}]
    assert ranges(lambda: run, "minmax", percentile=100, symmetric=True) == {"t": (-3.0, 3.0)}


def test_mse_knows_the_steps_of_the_type_and_whether_its_range_is_symmetric():
    values = np.random.default_rng(0).exponential(size=30_000).astype(np.float32) - 0.1

    def found(**options):
        return ranges(lambda: [{"t": values}], "mse", percentile=100, **options)["t"]

    # More steps leave less to win by clipping.
    assert found(levels=16)[1] < 0.7 * found(levels=256)[1] < 0.7 * found(levels=65536)[1]
    even, uneven = found(levels=16, symmetric=True), found(levels=16)
    assert even[0] == -even[1]
    # Half of an even range's steps lie where no value is: the rest are wider, and clipping wins more.
    assert even[1] < 0.95 * uneven[1]
