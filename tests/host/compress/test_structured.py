from __future__ import annotations

import compress_zoo
import msgspec
import numpy as np
import pytest
import torch
from edgepress_host import evaluate, exporters, technique
from edgepress_host.press import structure
from edgepress_host.press.data import Samples
from edgepress_host.press.measure import count_module
from edgepress_host.press.strict import convert
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.structured import Structured
from edgepress_host.techniques.structured.circulant import CirculantLinear, circulant, dense
from edgepress_protocol.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

SIZES = st.integers(1, 13)


def structured(bench, model=None, **options):
    step = convert(options, Structured)
    step.check()
    return step.apply_module(compress_zoo.build() if model is None else model, bench)


@pytest.fixture(scope="module")
def wide():
    """Dense layers of widths that no block divides, over sequences."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(60, 130), nn.ReLU(), nn.Linear(130, 45, bias=False)).eval()


@pytest.fixture(scope="module")
def files(wide, bench):
    """Both formats, of the dense layers and of the block-circulant ones."""
    thin = structured(bench, wide, block=8)
    example = np.zeros((2, 5, 60), np.float32)
    return thin, {
        name: [exporters.get(name).export(model, example) for model in (wide, thin)] for name in exporters.names()
    }


@given(st.integers(2, 9), SIZES, SIZES, st.booleans(), st.integers(0, 99))
def test_a_circulant_layer_computes_what_its_dense_weight_does(block, in_, out, bias, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = CirculantLinear(in_, out, block, bias=bias)
        x = torch.randn(2, 3, in_)
    assert torch.allclose(layer(x), functional.linear(x, dense(layer), layer.bias), atol=1e-5)


@given(st.integers(2, 9), SIZES, SIZES, st.integers(0, 99))
def test_it_begins_as_the_nearest_block_circulant_matrix(block, in_, out, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(in_, out)
        other = CirculantLinear(in_, out, block)
    nearest = circulant(layer, block)
    rest = layer.weight - dense(nearest)
    # What is left over stands at a right angle to every block-circulant matrix.
    assert abs(float((rest * dense(other)).sum().detach())) < 1e-4
    assert torch.equal(nearest.bias, layer.bias)
    with torch.no_grad():
        layer.weight.copy_(dense(other))
        assert torch.allclose(dense(circulant(layer, block)), layer.weight, atol=1e-6)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_the_file_holds_one_value_per_block_and_answers_as_the_dense_equivalent(format_, files):
    thin, made = files
    before, after = made[format_]
    assert len(after) < 0.3 * len(before)
    assert max(weight.elements for weight in exporters.get(format_).weights(after)) == 17 * 8 * 8
    x = np.random.default_rng(0).standard_normal((3, 5, 60)).astype(np.float32)
    got = np.concatenate([outputs[0] for outputs in evaluate.predict(format_, after, x)])
    with torch.no_grad():
        hidden = functional.linear(torch.from_numpy(x), dense(thin[0]), thin[0].bias).relu()
        want = functional.linear(hidden, dense(thin[2]), thin[2].bias).numpy()
    assert np.abs(got - want).max() < 1e-4


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_it_can_be_quantized_to_int8_afterwards(format_, files, bench):
    x = np.random.default_rng(1).standard_normal((32, 5, 60)).astype(np.float32)
    around = msgspec.structs.replace(bench, split=lambda _: Samples(x, np.zeros(len(x), np.int64)))
    _, made = files
    step = convert({"mode": "static", "samples": 32}, technique.found()["quantize"])
    content = step.apply_graph(format_, made[format_][1], around)
    largest = max(exporters.get(format_).weights(content), key=lambda weight: weight.elements)
    assert (largest.dtype, largest.elements) == ("int8", 17 * 8 * 8)
    float_, int8 = (
        np.concatenate([outputs[0] for outputs in evaluate.predict(format_, file, x[:8])])
        for file in (made[format_][1], content)
    )
    assert np.abs(float_ - int8).mean() < 0.05 * np.abs(float_).max()


def test_parameters_shrink_by_the_block_and_by_layer_and_type(bench):
    def width(model):
        return model.hidden.weight.numel(), type(model.head).__name__

    assert width(structured(bench, block=8)) == (24 * 576 // 8, "Linear")
    assert width(structured(bench, block=4)) == (24 * 576 // 4, "CirculantLinear")
    assert width(structured(bench, block=4, layers={"hid*": {"block": 24}})) == (576, "CirculantLinear")
    assert width(structured(bench, block=4, layers={"head": {"skip": True}}))[1] == "Linear"
    assert width(structured(bench, block=4, types={"Linear": {"skip": True}}, layers={"head": {"skip": False}})) == (
        24 * 576,
        "CirculantLinear",
    )
    counts = [count_module(model, bench.calibration(1)) for model in (compress_zoo.build(), structured(bench, block=8))]
    assert counts[0].params - counts[1].params == 24 * 576 * 7 // 8
    assert counts[0].macs == counts[1].macs


def test_what_is_too_narrow_is_named_and_nothing_to_do_is_no_success(bench):
    notes = []
    structured(msgspec.structs.replace(bench, note=notes.append), block=8)
    assert notes == ["left as they are: head (24 to 4, narrower than a block of 8)"]
    with pytest.raises(StepFailed, match=r"hidden \(576 to 24, narrower than a block of 32\), .*; give a small"):
        structured(bench, block=32)
    with pytest.raises(StepFailed, match="there is none, or all are skipped"):
        structured(bench, nn.Sequential(nn.Flatten()))
    with pytest.raises(UsageError, match=r"layers.'hiden': matches no layer; did you mean 'hidden'\?"):
        structured(bench, layers={"hiden": {"block": 4}})
    with pytest.raises(UsageError, match="teacher: it teaches while the step trains"):
        structured(bench, teacher=True)


def test_a_model_that_is_block_circulant_already_is_refused(bench):
    step = Structured(block=4)
    with pytest.raises(StepFailed, match="no dense layer became block-circulant; there is none"):
        step.apply_module(step.apply_module(compress_zoo.build(), bench), bench)


def test_training_brings_back_what_the_projection_lost(bench):
    seen = bench.split("validate")
    x = torch.from_numpy(seen.x.copy())

    def right(model):
        with torch.no_grad():
            return float((model(x).argmax(1).numpy() == seen.y).mean())

    lesson = {"block": 8, "batch": 16, "lr": 3e-3, "epochs": 2}
    lost, again, taught = (structured(bench, **some) for some in ({"block": 8}, lesson, {**lesson, "teacher": True}))
    assert right(again) > right(lost) + 0.1
    assert right(taught) > right(lost) + 0.1
    assert structure.digest(again) != structure.digest(taught)


def test_a_transformers_layers_are_called_instead_of_fused(bench):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(layer, nn.Linear(8, 8)).eval()
    thin = structured(bench, model, block=4)
    assert type(thin[0].self_attn.out_proj) is not CirculantLinear
    assert isinstance(thin[0].linear1, CirculantLinear)
    equal = structure.rebuild(model, structure.describe(model), structure.tensors(model))
    with torch.no_grad():
        for name in ("0.linear1", "0.linear2", "1"):
            equal.get_submodule(name).weight.copy_(dense(thin.get_submodule(name)))
        x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(thin(x), equal(x), atol=1e-5)
    again = structure.rebuild(model, structure.describe(thin), structure.tensors(thin))
    assert structure.digest(again) == structure.digest(thin)


def test_what_earlier_steps_made_of_single_weights_is_lost():
    assert Structured().breaks() == {"zeros", "shared", "grid"}
