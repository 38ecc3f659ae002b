"""A trial ends in numbers that are true."""

from __future__ import annotations

from statistics import median

import msgspec
import psutil
import pytest
from edgepress_agent.measure import measuring, summary
from edgepress_agent.measure.pipe import Timed
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.measurement import Window
from edgepress_protocol.messages import Measured
from hypothesis import given
from hypothesis import strategies as st
from measure_lab import MODELS, QUICK, Lab, Variant


@pytest.mark.parametrize("name", ["tiny", "float", "int8"])
def test_a_variant_is_measured_with_all_that_belongs_beside_a_latency(lab: Lab, name):
    measured = lab.profile_variant(name)
    assert isinstance(measured, Measured), measured
    result = measured.measurement
    latency = result.latency
    assert result.runtime.format == Variant(name).manifest.format
    assert result.load_ms > 0
    assert result.first_ms > 0
    assert result.warmup_runs >= QUICK.warmup_runs
    assert len(latency.windows) == QUICK.windows
    assert latency.runs == sum(window.runs for window in latency.windows) == latency.histogram.total
    assert all(window.duration_s >= QUICK.window_s for window in latency.windows)
    assert latency.min_ms <= latency.p50_ms <= latency.p95_ms <= latency.p99_ms <= latency.max_ms * 1.004
    assert latency.p50_ms == median(window.p50_ms for window in latency.windows)
    assert latency.unstable == (latency.spread > 0.05)
    twice = any(line.startswith("timed twice") for line in result.notes)
    assert twice == any("once more" in detail for _, detail in lab.phases)
    assert twice or not (latency.unstable or result.quiet.disturbed)
    assert result.golden_max_error is not None
    assert result.memory.baseline_bytes > 10_000_000
    assert 0 < result.memory.peak_bytes < 100_000_000
    assert result.memory.resident_peak_bytes >= result.memory.baseline_bytes
    assert (result.threads, result.batch) == (1, 1)
    assert result.before.load_1min is not None
    assert not result.simulated
    assert [phase for phase, _ in lab.phases] == ["measuring"] * len(lab.phases)


def test_nothing_is_left_behind(lab: Lab):
    lab.profile_variant("tiny")
    assert psutil.Process().children(recursive=True) == []


def test_percentiles_of_a_runtime_whose_latency_is_known(lab: Lab, misbehaving_runtime):
    options = msgspec.structs.replace(QUICK, window_s=0.4)
    latency = lab.profile(*lab.misbehaving("sleep"), options).measurement.latency
    # Nine runs of 4 ms for one of 20 ms; sleeping never ends early.
    assert 4.0 <= latency.min_ms <= latency.p50_ms < 16.0
    assert latency.p95_ms >= 0.996 * 20.0
    assert latency.p99_ms >= 0.996 * 20.0
    assert latency.max_ms >= 20.0


@given(st.lists(st.lists(st.integers(1, 10**10), min_size=1, max_size=30), min_size=1, max_size=5))
def test_headline_and_histogram_agree_with_the_samples(windows):
    def window(samples):
        ordered = sorted(samples)
        return Window(len(samples), 1.0, *(measuring.percentile_ms(ordered, percent) for percent in (50, 95)))

    flat = sorted(sample for samples in windows for sample in samples)
    seen = tuple(window(samples) for samples in windows)
    latency = summary.latency(Timed(seen, Histogram.of(flat), flat[0], flat[-1]))
    assert latency.p50_ms == median(each.p50_ms for each in seen)
    for percent, said in [(90, latency.p90_ms), (95, latency.p95_ms), (99, latency.p99_ms)]:
        assert said == pytest.approx(measuring.percentile_ms(flat, percent), rel=0.004, abs=1e-6)
    assert max(latency.p90_ms, latency.p95_ms, latency.p99_ms) <= latency.max_ms
    assert (latency.min_ms, latency.max_ms, latency.runs) == (flat[0] / 1e6, flat[-1] / 1e6, len(flat))


def test_one_window_tells_nothing_of_stability_and_says_so(lab: Lab):
    line = "one window: whether the latency is stable is not known"
    notes = lab.profile_variant("tiny", msgspec.structs.replace(QUICK, windows=1)).measurement.notes
    assert line in notes
    assert line not in lab.profile_variant("tiny").measurement.notes


def test_windows_that_disagree_are_measured_once_more_and_then_marked():
    steady = Timed((Window(1, 1, 1.0, 1.0), Window(1, 1, 1.04, 1.0)), Histogram.of([10**6]), 1, 1)
    shaky = Timed((Window(1, 1, 1.0, 1.0), Window(1, 1, 1.2, 1.0)), Histogram.of([10**6]), 1, 1)
    assert not summary.latency(steady).unstable
    assert summary.latency(shaky).unstable
    assert summary.latency(shaky).spread == pytest.approx(0.2 / 1.1)


@pytest.mark.parametrize(("metric", "file", "value"), [("top1", "tiny.top1", 0.5), ("neg_mse", "tiny.mse", -0.25)])
def test_accuracy_is_computed_on_the_device(lab: Lab, metric, file, value):
    evaluation = MODELS / f"{file}.safetensors"
    accuracy = lab.profile_variant("tiny", evaluation=evaluation, metric=metric).measurement.accuracy
    assert accuracy.metric == metric
    assert accuracy.value == pytest.approx(value, abs=1e-5)
    assert accuracy.samples == 8


def test_reals_are_quantized_for_an_integer_model(lab: Lab, tmp_path):
    """The evaluation set holds reals; a right int8 model classifies them as the float model does."""
    from safetensors.numpy import load_file, save

    floats = load_file(Variant("float").golden)
    evaluation = tmp_path / "set.safetensors"
    evaluation.write_bytes(save({"x": floats["input.0"], "y": floats["output.0"].argmax(1)}))
    accuracy = lab.profile_variant("int8", evaluation=evaluation).measurement.accuracy
    assert accuracy.value >= 7 / 8


@pytest.mark.parametrize("name", ["tiny", "dense"])
def test_a_batch_is_fed_at_once_where_the_file_allows_it(lab: Lab, name):
    measured = lab.profile_variant(name, msgspec.structs.replace(QUICK, batch=3))
    assert measured.measurement.batch == 3
    assert measured.measurement.golden_max_error < 1e-3


def test_a_file_whose_batch_is_fixed_says_so(lab: Lab):
    outcome = lab.profile_variant("float", msgspec.structs.replace(QUICK, batch=3))
    assert outcome.kind == "unsupported"
    assert "cannot take inputs of shape [(3, 1, 8, 8)]" in outcome.detail
