"""A trial ends in numbers that are true, or in an outcome that says why not."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import msgspec
import psutil
import pytest
from edgepress_agent.measure import check, measuring
from edgepress_agent.measure.pipe import Timed
from edgepress_agent.measure.profile import summarise
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import Golden, Manifest, TensorSpec, digest
from edgepress_protocol.measurement import Window
from edgepress_protocol.messages import Failed, Measured
from edgepress_protocol.transfer import describe
from hypothesis import given
from hypothesis import strategies as st
from measure_lab import FIXTURES, MODELS, QUICK, Lab, Variant, gone

ROOT = Path(__file__).parents[3]


# ---- numbers


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
    assert twice or not latency.unstable
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
    latency = summarise(Timed(seen, Histogram.of(flat), flat[0], flat[-1]))
    assert latency.p50_ms == median(each.p50_ms for each in seen)
    for percent, said in [(90, latency.p90_ms), (95, latency.p95_ms), (99, latency.p99_ms)]:
        assert said == pytest.approx(measuring.percentile_ms(flat, percent), rel=0.004, abs=1e-6)
    assert max(latency.p90_ms, latency.p95_ms, latency.p99_ms) <= latency.max_ms
    assert (latency.min_ms, latency.max_ms, latency.runs) == (flat[0] / 1e6, flat[-1] / 1e6, len(flat))


def test_one_window_tells_nothing_of_stability_and_says_so(lab: Lab):
    line = "one window: whether the latency is stable is not known"
    notes = lab.profile_variant("tiny", msgspec.structs.replace(QUICK, windows=1)).measurement.notes
    assert notes == (line,)
    assert line not in lab.profile_variant("tiny").measurement.notes


def test_windows_that_disagree_are_measured_once_more_and_then_marked():
    steady = Timed((Window(1, 1, 1.0, 1.0), Window(1, 1, 1.04, 1.0)), Histogram.of([10**6]), 1, 1)
    shaky = Timed((Window(1, 1, 1.0, 1.0), Window(1, 1, 1.2, 1.0)), Histogram.of([10**6]), 1, 1)
    assert not summarise(steady).unstable
    assert summarise(shaky).unstable
    assert summarise(shaky).spread == pytest.approx(0.2 / 1.1)


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


# ---- outcomes


def test_one_altered_weight_makes_wrong_results_and_no_measurement(lab: Lab):
    import numpy as np

    variant = Variant("tiny")
    data = bytearray(variant.model.read_bytes())
    weights = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    start = data.index(weights.tobytes())
    data[start : start + 4] = (-weights[0, 0]).tobytes()
    model = lab.folder / "altered.onnx"
    model.write_bytes(data)
    outcome = lab.profile(variant.manifest, model, golden=variant.golden)
    assert outcome.kind == "golden"
    assert outcome.detail.startswith("golden vectors: output.0 is off by")


def profile_with_golden(lab: Lab, behaviour: str, y: list[float]) -> Measured | Failed:
    import numpy as np
    from safetensors.numpy import save

    manifest, model = lab.misbehaving(behaviour)
    golden = lab.folder / "golden"
    outputs = np.array(y, np.float32).reshape(-1, 1)
    golden.write_bytes(save({"input.0": np.ones_like(outputs), "output.0": outputs}))
    manifest = msgspec.structs.replace(manifest, golden=Golden(describe(golden.read_bytes())[0], 1e-6, 1.0))
    return lab.profile(manifest, model, golden=golden)


def test_a_model_that_keeps_a_state_sees_each_golden_sample_once_and_in_order(lab: Lab, misbehaving_runtime):
    assert profile_with_golden(lab, "count", [1, 2, 3]).measurement.golden_max_error == 0


def test_what_the_golden_vectors_take_is_not_the_models_memory(lab: Lab, tmp_path):
    from safetensors.numpy import load_file, save_file

    variant = Variant("tiny")
    many = tmp_path / "many.safetensors"
    save_file({name: each.repeat(5000, axis=0) for name, each in load_file(variant.golden).items()}, many)
    few, more = (
        lab.profile(variant.manifest, variant.model, golden=path).measurement.memory.peak_bytes
        for path in (variant.golden, many)
    )
    assert more < few + many.stat().st_size


def test_nan_is_wrong(lab: Lab, misbehaving_runtime):
    outcome = profile_with_golden(lab, "nan", [2, 2])
    assert outcome == Failed("golden", "golden vectors: output.0 is off by nan, at most 2 is right")


@pytest.mark.parametrize(
    ("behaviour", "kind", "said"),
    [
        ("crash", "crash", "the runtime crashed: SIGSEGV; it said: about to touch address zero"),
        ("exit", "crash", "the runtime crashed: exit status 7"),
        ("abort", "memory", "std::bad_alloc"),
        ("raise_", "error", "RuntimeError: the third node has no kernel"),
        ("unheard-of", "error", "AttributeError"),
    ],
)
def test_a_runtime_that_fails_is_an_outcome_in_one_line(lab: Lab, misbehaving_runtime, behaviour, kind, said):
    outcome = lab.profile(*lab.misbehaving(behaviour))
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind
    assert said in outcome.detail
    assert "\n" not in outcome.detail


def test_a_model_that_hangs_is_stopped_with_all_it_started(lab: Lab, misbehaving_runtime, tmp_path):
    pids = tmp_path / "pids"
    outcome = lab.profile(*lab.misbehaving(f"hang {pids}"), msgspec.structs.replace(QUICK, timeout_s=4.0))
    assert outcome == Failed("timeout", "not done after 4 s, and stopped")
    # SIGKILL has been sent; the kernel ends a grandchild in its own time.
    wait_for(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))


def test_a_model_beyond_its_memory_limit_is_an_outcome(lab: Lab, misbehaving_runtime):
    options = msgspec.structs.replace(QUICK, memory_limit_bytes=128 << 20)
    assert lab.profile(*lab.misbehaving("eat"), options).kind == "memory"


@pytest.mark.parametrize("name", ["tiny", "float"])
def test_a_limit_that_suffices_does_not_disturb(lab: Lab, name):
    options = msgspec.structs.replace(QUICK, memory_limit_bytes=512 << 20)
    assert isinstance(lab.profile_variant(name, options), Measured)


def test_a_flood_of_output_neither_blocks_nor_fills_the_agent(lab: Lab, misbehaving_runtime):
    outcome = lab.profile(*lab.misbehaving("flood"))
    assert outcome.kind == "crash"
    assert outcome.detail.endswith("about to touch address zero")
    assert len(outcome.detail) < 4096


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "caffe"}, "no runtime for format 'caffe' is installed; this agent runs:"),
        ({"needs": "onnxruntime>=99.1"}, "the variant needs onnxruntime>=99.1; this agent has onnxruntime"),
        ({"needs": "a magic wand"}, "the variant needs a magic wand"),
    ],
)
def test_what_cannot_run_here_is_unsupported(lab: Lab, changes, said):
    variant = Variant("tiny")
    outcome = lab.profile(msgspec.structs.replace(variant.manifest, **changes), variant.model)
    assert outcome.kind == "unsupported"
    assert outcome.detail.startswith(said)


def test_a_file_that_is_not_what_its_manifest_says_is_rejected(lab: Lab):
    variant = Variant("tiny")
    other = msgspec.structs.replace(variant.manifest, inputs=(TensorSpec("x", "int8", (None, 16)),))
    outcome = lab.profile(other, variant.model)
    assert outcome == Failed("rejected", "input 'x': the manifest says int8 (?, 16), the file float32 (?, 16)")


@pytest.mark.parametrize("name", ["tiny", "float"])
def test_a_truncated_model_is_an_outcome(lab: Lab, name):
    variant = Variant(name)
    model = lab.folder / "cut"
    model.write_bytes(variant.model.read_bytes()[:200])
    assert isinstance(lab.profile(variant.manifest, model), Failed)


def test_truncated_golden_vectors_are_rejected(lab: Lab):
    variant = Variant("tiny")
    golden = lab.folder / "cut"
    golden.write_bytes(variant.golden.read_bytes()[:100])
    assert lab.profile(variant.manifest, variant.model, golden=golden).kind == "rejected"


def test_a_custom_metric_is_refused(lab: Lab):
    variant = Variant("float")
    outcome = lab.profile(variant.manifest, variant.model, evaluation=Variant("tiny").golden)
    assert outcome.kind == "rejected"
    assert "'x' is missing" in outcome.detail


# ---- taking turns


async def heard(lab: Lab) -> None:
    while not lab.phases:  # noqa: ASYNC110 - a test looks from outside, where no event is
        await asyncio.sleep(0.01)


def test_agents_on_one_machine_measure_in_turn(lab: Lab):
    variant = Variant("tiny")

    async def story():
        with lab.lock.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            trial = asyncio.create_task(lab.profile_async(lab.job(variant.manifest, variant.model)))
            await heard(lab)
            assert lab.phases == [("waiting", "another agent on this machine measures")]
        return await trial

    assert isinstance(asyncio.run(story()), Measured)


def test_a_trial_given_up_while_waiting_leaves_the_turn_to_others(lab: Lab):
    variant = Variant("tiny")

    async def story():
        with lab.lock.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            trial = asyncio.create_task(lab.profile_async(lab.job(variant.manifest, variant.model)))
            await heard(lab)
            trial.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await trial
        return await lab.profile_async(lab.job(variant.manifest, variant.model))

    assert isinstance(asyncio.run(story()), Measured)


def test_a_lock_that_cannot_be_had_is_one_line(lab: Lab):
    lab.lock.mkdir()
    outcome = lab.profile_variant("tiny")
    assert outcome.kind == "error"
    assert "Is a directory" in outcome.detail


# ---- the process


def test_the_child_dies_with_the_agent(lab: Lab, misbehaving_runtime, tmp_path):
    pids = tmp_path / "pids"
    manifest, model = lab.misbehaving(f"hang {pids}")
    program = (
        "import asyncio, sys, msgspec; from pathlib import Path; from edgepress_agent.measure import check;"
        "from edgepress_protocol.manifest import Manifest;"
        "m = msgspec.json.decode(sys.argv[1], type=Manifest); p = Path(sys.argv[2]);"
        "asyncio.run(check.golden(m, p, None, timeout_s=100, work_dir=p.parent / 'work'))"
    )
    agent = subprocess.Popen([sys.executable, "-c", program, msgspec.json.encode(manifest).decode(), str(model)])
    wait_for(lambda: pids.exists() and pids.read_text().count(" ") == 1)
    child, grandchild = (psutil.Process(int(pid)) for pid in pids.read_text().split())
    agent.kill()
    agent.wait()
    wait_for(lambda: gone(child.pid))
    grandchild.kill()


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_agent_needs_no_numpy():
    program = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.partition('.')[0] in ('numpy', 'torch', 'edgepress_host'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from pathlib import Path\n"
        "from edgepress_agent.board import probe, telemetry\n"
        "from edgepress_agent.measure import check, profile\n"
        "from edgepress_agent.serving import serve\n"
        "print(probe.describe(probe.inventory(Path('/'), device_id='pi', state_dir=Path('/'))))\n"
        "telemetry.read(Path('/'), None)\n"
        "assert not {'onnxruntime', 'ai_edge_litert', 'tflite_runtime'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- before activation


@pytest.mark.parametrize("name", ["tiny", "float", "int8"])
def test_a_right_model_passes_its_check(lab: Lab, name):
    variant = Variant(name)
    for golden in (variant.golden, None):
        done = check.golden(variant.manifest, variant.model, golden, timeout_s=30, work_dir=lab.folder / "work")
        assert asyncio.run(done) is None


def test_a_model_that_hangs_does_not_pass_its_check(lab: Lab, misbehaving_runtime, tmp_path):
    manifest, model = lab.misbehaving(f"hang {tmp_path / 'pids'}")
    outcome = asyncio.run(check.golden(manifest, model, None, timeout_s=1, work_dir=lab.folder / "work"))
    assert outcome == Failed("timeout", "not loaded and checked after 1 s, and stopped")


def test_a_file_that_tflite_runtime_runs_wrongly_is_refused_by_its_golden_vectors(tmp_path):
    """LiteRT runs this dynamic-range file rightly; tflite-runtime 2.14 returns other numbers, and no error."""
    python = ROOT / ".venv-tflite/bin/python"
    if not python.exists():
        pytest.skip("no .venv-tflite with tflite-runtime beside the sources")
    program = (
        "import asyncio, sys, msgspec; from pathlib import Path; from edgepress_agent.measure import check\n"
        "from edgepress_protocol.manifest import Manifest\n"
        "for name in ('float', 'dynamic'):\n"
        "    folder, work = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "    manifest = msgspec.json.decode((folder / f'{name}.manifest.json').read_bytes(), type=Manifest)\n"
        "    model, golden = folder / f'{name}.tflite', folder / f'{name}.golden.safetensors'\n"
        "    print(asyncio.run(check.golden(manifest, model, golden, timeout_s=60, work_dir=work)))\n"
    )
    run = [str(python), "-c", program, str(MODELS), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    right, wrong = done.stdout.splitlines()
    assert right == "None"
    assert "kind='golden'" in wrong
    assert "output.0 is off by" in wrong


def test_the_same_file_is_right_on_litert(lab: Lab):
    variant = Variant("dynamic")
    done = check.golden(variant.manifest, variant.model, variant.golden, timeout_s=30, work_dir=lab.folder / "work")
    if "litert" in installed_tflite():
        assert asyncio.run(done) is None
    else:
        assert asyncio.run(done).kind == "golden"


def installed_tflite() -> str:
    from edgepress_agent import runtimes

    return runtimes.get("tflite")[0].name


def test_the_committed_files_are_what_their_manifests_say():
    for path in sorted(MODELS.glob("*.manifest.json")):
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        name = path.name.partition(".")[0]
        # The wire form may differ from one zstd to the next; the files may not.
        assert digest((MODELS / f"{name}.{manifest.format}").read_bytes()) == manifest.model.sha256
        assert digest((MODELS / f"{name}.golden.safetensors").read_bytes()) == manifest.golden.blob.sha256
    assert (FIXTURES / "make_models.py").exists()
