"""Which runtime and which place a model runs on: what was chosen is what runs, and what it did not do is said."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import onnx_files
import pytest
from edgepress_agent import runtimes
from edgepress_agent.measure import apart, check, local
from edgepress_agent.measure.worker import Ended
from edgepress_agent.runtimes import onnx
from edgepress_agent.serving.serve import Server
from edgepress_protocol.manifest import Quantization
from edgepress_protocol.measurement import Layer
from edgepress_protocol.messages import Failed, Measured
from measure_lab import QUICK, Lab, Variant, needs_format

LIGHT = msgspec.structs.replace(QUICK, windows=1, window_s=0.02, warmup_runs=1, warmup_s=0, paced_hz=0)


@pytest.fixture
def only_second(misbehaving_runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that was started with `--runtime second`, beside the others that are installed."""
    needs_format("onnx")
    monkeypatch.setattr(runtimes, "_offered", set())
    runtimes.offer_only(["second"])


def test_the_runtime_that_was_chosen_is_the_one_that_runs(lab: Lab, only_second):
    variant = Variant("tiny")
    measured = lab.profile(variant.manifest, variant.model, LIGHT)
    assert isinstance(measured, Measured), measured
    assert measured.measurement.runtime.name == "second"


def test_the_golden_vectors_are_held_against_the_runtime_that_will_serve(lab: Lab, only_second):
    """It answers nothing but zeros: ONNX Runtime, which is installed too, would have passed."""
    variant = Variant("tiny")
    done = check.golden(variant.manifest, variant.model, variant.golden, timeout_s=60, work_dir=lab.folder / "work")
    outcome = asyncio.run(done)
    assert outcome is not None
    assert outcome.kind == "golden"


def test_it_serves_and_looks_at_files_too(lab: Lab, only_second):
    variant = Variant("tiny")
    job = asyncio.run(local.job_of(variant.model, LIGHT, lab.folder / "look"))
    assert job.manifest.inputs[0].shape == (None, 16)
    assert job.open().runtime == "second"

    async def serves() -> bytes:
        server = Server(f"unix:{lab.folder}/s.sock", lab.folder / "w")
        await server.start()
        await server.swap(variant.manifest, variant.model)
        reader, writer = await asyncio.open_unix_connection(f"{lab.folder}/s.sock")
        body = b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":[%s]}]}' % b",".join([b"1"] * 16)
        writer.write(b"POST /v2/models/active/infer HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        answer = await reader.read()
        writer.close()
        await server.stop()
        return answer

    assert b"[0.0,0.0,0.0,0.0]" in asyncio.run(serves())


def test_a_place_that_is_here_and_runs_nothing_is_said(lab: Lab):
    """Azure's provider is in every build, is named by the session, and takes no layer of such a model."""
    needs_format("onnx")
    if "azure" not in {onnx.short(each) for each in pytest.importorskip("onnxruntime").get_available_providers()}:
        pytest.skip("this ONNX Runtime has no provider but the CPU's")
    options = msgspec.structs.replace(LIGHT, providers=("azure",))
    found = lab.profile_variant("tiny", options).measurement
    assert found.providers == ("azure", "cpu")
    assert "of 2 layers, 0 ran on azure, 2 on cpu" in found.notes
    assert found.layers == (), "they were not asked for"


def test_a_look_that_fails_costs_the_measurement_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    async def fails(*_: object) -> None:
        raise Ended(Failed("memory", "CUDA failure 2: out of memory"))

    monkeypatch.setattr(apart, "layers", fails)
    found = lab.profile_variant("tiny", msgspec.structs.replace(LIGHT, providers=("azure",)))
    assert isinstance(found, Measured), found
    assert "where its layers ran is not known: CUDA failure 2: out of memory" in found.measurement.notes
    asked = lab.profile_variant("tiny", msgspec.structs.replace(LIGHT, layers=True))
    assert asked.kind == "memory", "what was asked for is no look"


def test_providers_are_tried_in_the_order_in_which_they_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    here = [f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "CPU")]
    asked = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: here)

    class Session:
        def __init__(self, _path, _options, providers):
            asked.append(providers)

        get_inputs = get_outputs = get_providers = staticmethod(list)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    for wanted in (("tensorrt", "cuda"), ("cuda", "nowhere"), ("cpu",), ()):
        onnx.load_on(Path("model.onnx"), 1, wanted)
    tensorrt, cuda, cpu = here[1], here[0], here[2]
    assert asked == [[tensorrt, cuda, cpu], [cuda, cpu], [cpu], [cpu]]


def test_layers_that_ran_elsewhere_are_counted():
    layers = [Layer(str(i), "Conv", 1.0, 0.25, place) for i, place in enumerate(("cuda", "cuda", "cpu", "cuda"))]
    assert apart.strayed(layers, ["cuda"]) == ("of 4 layers, 3 ran on cuda, 1 on cpu",)
    assert apart.strayed(layers[:2], ["cuda"]) == ()
    assert apart.strayed(layers, []) == ()
    assert apart.strayed((), ["cuda"]) == ()


@pytest.mark.parametrize("threads", [1, 3])
def test_onnx_runtime_gets_so_many_threads_which_do_not_spin_and_no_profiler(threads: int):
    pytest.importorskip("onnxruntime")
    options = onnx.load(Variant("tiny").model, threads)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    for pool in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{pool}.allow_spinning") == "0"
    assert options.enable_profiling is False


@pytest.mark.parametrize("threads", [1, 3])
def test_tflite_gets_so_many_threads(threads: int, monkeypatch: pytest.MonkeyPatch):
    from edgepress_agent.runtimes import tflite

    variant = Variant("float")
    real, asked = tflite._interpreter_class(), []

    def interpreter(**options):
        asked.append(options["num_threads"])
        return real(**options)

    monkeypatch.setattr(tflite, "_interpreter_class", lambda: interpreter)
    tflite.load(variant.model, threads)
    assert asked == [threads]


def test_a_sweep_opens_the_model_with_each_number_of_threads(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    asked, ask = [], apart.Worker.ask

    async def heard(child, question, kind):
        asked.append(getattr(question, "threads", None))
        return await ask(child, question, kind)

    monkeypatch.setattr(apart.Worker, "ask", heard)
    lab.profile_variant("float", msgspec.structs.replace(LIGHT, sweep_threads=(2, 3)))
    assert [each for each in asked if each is not None] == [1, 2, 3]


def test_scale_and_zero_point_of_an_onnx_file_come_from_its_manifest(lab: Lab):
    """Reals are quantized for it, and its int8 answers become reals again, as those of a TFLite file."""
    needs_format("onnx")
    manifest, model, evaluation = onnx_files.int8_ends(lab.folder)
    accuracy = lab.profile(manifest, model, LIGHT, evaluation=evaluation, metric="neg_mse").measurement.accuracy
    assert accuracy.value == pytest.approx(0.0, abs=1e-3)
    bare = msgspec.structs.replace(manifest, inputs=(msgspec.structs.replace(manifest.inputs[0], quantization=None),))
    refused = lab.profile(bare, model, LIGHT, evaluation=evaluation, metric="neg_mse")
    assert (refused.kind, "takes int8 without a scale" in refused.detail) == ("rejected", True)


def test_a_scale_that_is_not_the_files_is_refused(lab: Lab):
    variant = Variant("int8")
    wrong = msgspec.structs.replace(variant.manifest.inputs[0], quantization=Quantization(0.5, 1))
    manifest = msgspec.structs.replace(variant.manifest, inputs=(wrong,))
    refused = lab.profile(manifest, variant.model, LIGHT)
    assert refused.kind == "rejected"
    assert "the manifest says Quantization(scale=0.5, zero_point=1)" in refused.detail


# ---- the third runtime


@pytest.fixture
def only_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(runtimes, "_offered", set())
    runtimes.offer_only(["openvino"])


def test_openvino_measures_a_trial_confined_with_layers(lab: Lab, only_openvino):
    options = msgspec.structs.replace(LIGHT, layers=True, providers=("nowhere",))
    measured = lab.profile_variant("tiny", options)
    assert isinstance(measured, Measured), measured
    found = measured.measurement
    assert (found.runtime.name, found.providers) == ("openvino", ("cpu",))
    assert found.golden_max_error < 1e-4
    assert "seccomp" in " ".join(found.guards) or any("seccomp" in note for note in found.notes)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert {layer.provider for layer in found.layers} == {"cpu"}
    assert any(note.startswith("asked for nowhere, which openvino could not start here") for note in found.notes)
