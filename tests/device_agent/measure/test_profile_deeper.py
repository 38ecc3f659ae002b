"""What a trial measures beside its headline: paced, cost, threads, layers, long loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from edgepress_agent.measure import measuring, summary
from edgepress_agent.measure.conditions import Snapshot
from edgepress_agent.measure.pipe import Timed
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.measurement import Conditions, Window
from edgepress_protocol.messages import Measured
from measure_lab import QUICK, Lab, Variant

LIGHT = msgspec.structs.replace(QUICK, windows=1, window_s=0.02, warmup_runs=1, warmup_s=0, paced_hz=0)


def test_paced_latency_is_of_runs_that_begin_on_the_beat(lab: Lab, misbehaving_runtime):
    """Runs of 4 ms, every tenth of 20, at 100 Hz: each long one loses the next beat."""
    options = msgspec.structs.replace(LIGHT, window_s=0.5, paced_hz=100)
    paced = lab.profile(*lab.misbehaving("sleep"), options).measurement.paced
    assert paced.rate_hz == 100
    assert paced.runs + paced.late >= 50
    assert paced.late >= 4
    assert paced.p50_ms >= 4.0
    assert paced.max_ms >= 20.0
    assert paced.runs == paced.histogram.total


def test_a_trial_is_paced_at_20_hz_unless_it_says_otherwise(lab: Lab):
    assert lab.profile_variant("tiny").measurement.paced.rate_hz == 20.0
    assert lab.profile_variant("tiny", LIGHT).measurement.paced is None


def test_a_run_longer_than_the_period_loses_the_beats_that_it_covers(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    runs = iter([1, 25, 1, 1, 10, 1, 1, 1, 1, 1])
    timed = measuring.time_paced(lambda: clock.passes(next(runs)), rate_hz=100, seconds=0.08)
    # Beats of 10 ms: the run of 25 covers two, that of 10 ends on the next beat and loses none.
    assert timed.late == 2
    assert timed.histogram.total == 6
    assert timed.max_ns == 25_000_000
    assert timed.median_ns == 1_000_000


class Clock:
    """Time that passes only when something says so, in ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        for name in ("perf_counter_ns", "monotonic_ns"):
            monkeypatch.setattr(measuring, name, lambda: self.now_ns)
        monkeypatch.setattr(measuring, "sleep", lambda seconds: self.passes(seconds * 1e3))

    def passes(self, ms: float) -> None:
        self.now_ns += round(ms * 1e6)


@pytest.mark.parametrize(
    ("stretches_ms", "runs"),
    [((10, 5, 2.5, 2.5), 4 * 2), ((1, 1), 2 * 2), (tuple(2**i for i in range(20)), measuring.MAX_STRETCHES * 2)],
)
def test_a_model_is_warm_when_two_stretches_agree(monkeypatch: pytest.MonkeyPatch, stretches_ms, runs):
    """Two runs a stretch; one that never settles is measured all the same."""
    clock = Clock(monkeypatch)
    each_ms = (ms for ms in stretches_ms for _ in range(2))
    assert measuring.warm_up(lambda: clock.passes(next(each_ms)), runs=4, seconds=0) == runs


def test_processor_time_is_that_of_the_model(lab: Lab, misbehaving_runtime):
    """Sleeping takes none of it, whatever the clock on the wall says."""
    options = msgspec.structs.replace(LIGHT, window_s=0.2)
    measured = lab.profile(*lab.misbehaving("sleep"), options).measurement
    assert measured.usage.runs >= 1
    assert 0 < measured.usage.cpu_ms_per_inference < measured.latency.p50_ms


def test_page_faults_are_counted(lab: Lab, misbehaving_runtime):
    """Each run touches 50 fresh pages."""
    usage = lab.profile(*lab.misbehaving("touch 50"), LIGHT).measurement.usage
    assert 50 * usage.runs <= usage.minor_faults <= 60 * usage.runs
    assert usage.major_faults == 0


@pytest.mark.parametrize(("behaviour", "kept_mb"), [("hold 40", 40), ("free 40", 0)])
def test_memory_is_what_the_model_took_above_the_empty_runtime(lab: Lab, misbehaving_runtime, behaviour, kept_mb):
    """40 MB are touched in the first run, and kept or given back: the peak saw them either way."""
    memory = lab.profile(*lab.misbehaving(behaviour), LIGHT).measurement.memory
    assert memory.peak_bytes == pytest.approx(40e6, abs=6e6)
    assert memory.resident_peak_bytes == memory.baseline_bytes + memory.peak_bytes
    assert memory.pss_bytes == pytest.approx(kept_mb * 1e6, abs=6e6)


def test_other_numbers_of_threads_are_timed_in_processes_of_their_own(lab: Lab):
    result = lab.profile_variant("float", msgspec.structs.replace(LIGHT, sweep_threads=(2, 3))).measurement
    assert result.threads == 1
    assert [point.threads for point in result.sweep] == [2, 3]
    assert all(point.p50_ms > 0 and point.runs >= 1 for point in result.sweep)


def test_layers_come_from_a_run_of_their_own(lab: Lab):
    result = lab.profile_variant("tiny", msgspec.structs.replace(LIGHT, layers=True)).measurement
    assert {layer.operator for layer in result.layers} == {"MatMul", "Softmax"}
    assert sum(layer.share for layer in result.layers) == pytest.approx(1)
    assert not list(lab.folder.rglob("layers*"))


def test_a_runtime_that_tells_no_layers_is_said_in_one_line(lab: Lab):
    result = lab.profile_variant("float", msgspec.structs.replace(LIGHT, layers=True)).measurement
    assert result.layers == ()
    assert f"{result.runtime.name} tells no times per layer to Python" in result.notes


def test_a_long_load_tells_its_beginning_from_its_end(lab: Lab):
    measured = lab.profile_variant("tiny", msgspec.structs.replace(LIGHT, soak_s=0.4))
    assert isinstance(measured, Measured), measured
    soak = measured.measurement.soak
    assert soak.seconds >= 0.4
    assert len(soak.p50_ms) == 4
    assert soak.first.runs + soak.steady.runs >= 4
    assert measured.measurement.before.temperature_celsius is not None or soak.settled is None


def test_the_first_minute_and_the_last_of_a_load_that_warms_the_board():
    """Ten minutes in slices of 10 s: 1 ms at first, 1.5 ms once the board is at 80 °C."""
    slices = [at(1.0 if i < 20 else 1.5, celsius=min(80.0, 40.0 + i)) for i in range(60)]
    cool = at(1.0, celsius=38.0)[1]
    soak = summary.soak(slices, cool)
    assert (soak.first.seconds, soak.steady.seconds) == (60, 60)
    assert soak.first.p50_ms == pytest.approx(1.0, rel=0.004)
    assert soak.steady.p50_ms == pytest.approx(1.5, rel=0.004)
    assert (soak.first.temperature_celsius, soak.steady.temperature_celsius) == (45.0, 80.0)
    assert soak.celsius_at_start == 38.0
    assert soak.settled is True
    assert not soak.throttled
    assert not summary.soak(slices[:40], cool).settled
    assert summary.soak([at(1.0, celsius=None)] * 12, cool).settled is None


@pytest.mark.parametrize(("before", "after"), [(0x50000, 0x50004), (0x0, 0x40000), (0x50004, 0x50004)])
def test_a_long_load_that_was_throttled_says_so(before: int, after: int):
    """It began to throttle, or has in between, or did all along."""
    slices = [at(1.0, 60.0), at(1.0, 60.0, bits=after)] * 2
    assert summary.soak(slices, at(1.0, 60.0, bits=before)[1]).throttled
    assert not summary.soak([at(1.0, 60.0, bits=0x50000)] * 4, at(1.0, 60.0, bits=0x50000)[1]).throttled


def test_a_throttle_bit_that_rises_in_a_long_load_is_seen(lab: Lab, boards: Path, tmp_path: Path):
    root = shutil.copytree(boards / "pi4", tmp_path / "board")

    def follow(phase: str, detail: str) -> None:
        if detail.startswith("long load"):
            (root / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("50008")

    lab.on_phase = follow
    variant = Variant("tiny")
    options = msgspec.structs.replace(LIGHT, soak_s=0.4)
    found = lab.profile(variant.manifest, variant.model, options, root=root).measurement
    assert found.soak.throttled
    assert found.soak.celsius_at_start == 46.738
    assert found.quiet.disturbed == (), "the headline was timed before"


def at(p50_ms: float, celsius: float | None, bits: int | None = None) -> tuple[Timed, Snapshot]:
    ns = round(p50_ms * 1e6)
    timed = Timed((Window(100, 10.0, p50_ms, p50_ms),), Histogram.of([ns] * 100), ns, ns)
    return timed, Snapshot(Conditions(temperature_celsius=celsius, throttle_bits=bits), None, None)


@pytest.mark.parametrize("name", ["tiny", "float", "int8"])
def test_inputs_of_the_timed_runs_are_the_golden_ones_still_after_many_runs(lab: Lab, name):
    """A runtime that held its inputs and wrote over them would time something else than it says."""
    from edgepress_agent import runtimes
    from edgepress_agent.measure import tensors
    from edgepress_agent.runtimes._timing import Repeats

    variant = Variant(name)
    _, module = runtimes.get(variant.manifest.format)
    model = module.load(variant.model, 1)
    bound = tensors.bind(model, variant.manifest, 1)
    inputs = bound.arrange(tensors.random_inputs(bound))
    first = [each.copy() for each in model.run(inputs)]
    assert isinstance(model, Repeats)
    again = model.repeat(inputs)
    for _ in range(20):
        again()
    if variant.manifest.format == "tflite":
        last = [model._interpreter.get_tensor(index) for index in model._output_indexes]
    else:
        last = again()
    assert all((a == b).all() for a, b in zip(first, last, strict=True))
