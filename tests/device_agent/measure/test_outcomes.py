"""A trial that cannot end in numbers ends in an outcome that says why not."""

from __future__ import annotations

import re

import msgspec
import psutil
import pytest
from edgepress_protocol.manifest import Golden, TensorSpec
from edgepress_protocol.messages import Failed, Measured
from edgepress_protocol.transfer import describe
from measure_lab import QUICK, Lab, Variant, gone, wait_for


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


def test_a_model_that_hangs_is_stopped(lab: Lab, misbehaving_runtime):
    children: set[int] = set()
    lab.on_phase = lambda *_: children.update(each.pid for each in psutil.Process().children(recursive=True))
    outcome = lab.profile(*lab.misbehaving("hang"), msgspec.structs.replace(QUICK, timeout_s=4.0))
    assert outcome == Failed("timeout", "not done after 4 s, and stopped")
    assert children
    wait_for(lambda: all(gone(pid) for pid in children))


@pytest.mark.parametrize("limit_mib", [128, 1024, None])
def test_a_model_beyond_its_memory_limit_is_an_outcome(lab: Lab, misbehaving_runtime, limit_mib):
    """It takes pieces of 64 MiB until it gets no more; None: the limit is then what the board has."""
    options = msgspec.structs.replace(QUICK, memory_limit_bytes=limit_mib and limit_mib << 20)
    outcome = lab.profile(*lab.misbehaving("eat"), options)
    assert outcome.kind == "memory"
    taken_mib = int(re.fullmatch(r"no more after (\d+) MiB", outcome.detail)[1])
    if limit_mib is None:
        assert taken_mib < psutil.virtual_memory().total / 2**20 + 2048
    else:
        assert limit_mib / 2 - 64 <= taken_mib <= limit_mib


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
