"""Quantization-aware training: from the options to what both runtimes really run."""

from __future__ import annotations

import functools
from collections import Counter

import compress_zoo
import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from edgepress_host import evaluate, exporters
from edgepress_host.press.data import Data
from edgepress_host.press.measure import count_module
from edgepress_host.press.strict import convert
from edgepress_host.recipe import parse
from edgepress_host.technique import StepFailed, Workbench, found
from edgepress_host.techniques.qat.capture import capture
from edgepress_host.techniques.qat.grids import GridActivation, GridWeight, best_scale
from edgepress_protocol.errors import UsageError
from torch import nn
from torch.nn import functional

FORMATS = ["onnx", "tflite"]
FULL = {"observe": 32}
"""8 bits everywhere."""

MIXED = {"observe": 32, "bits": 4, "layers": {"block.mix": {"bits": 2}, "hidden": {"bits": 1}}}
"""Stem and head of 8 bits, one layer each of 4, 2 and 1."""

ALONE = {"samples": 64, "bits": 4, "activations": "none"}
UNTRAINED = {"lr": 1e-9, "samples": 64}


def bench(note=lambda _: None):
    return Workbench(
        original=compress_zoo.build,
        split=Data(compress_zoo.load, key="compress_zoo:load").split,
        seed=0,
        say=lambda _: None,
        metric=evaluate.top1,
        augment=None,
        note=note,
    )


def qat(model=None, note=lambda _: None, **options):
    step = convert(options, found()["qat"])
    return step.apply_module(compress_zoo.build() if model is None else model, bench(note))


@functools.cache
def _made(options):
    return qat(**msgspec.json.decode(options))


def made(options):
    """Return what QAT makes of the zoo's model; the same options give the same module."""
    return _made(msgspec.json.encode(options))


@functools.cache
def _exported(options, format_):
    return exporters.get(format_).export(_made(options), bench().split("calibrate").x[:2])


def exported(options, format_):
    return _exported(msgspec.json.encode(options), format_)


def outputs(content, format_, x):
    return np.concatenate([batch[0] for batch in evaluate.predict(format_, content, x)])


def answers(model, x):
    with torch.no_grad():
        return model(torch.from_numpy(x.copy())).numpy()


def really_run(content, path):
    """Operators of the graph that ONNX Runtime made of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def loss(model):
    samples = bench().split("validate")
    scores, labels = torch.from_numpy(answers(model, samples.x)), torch.from_numpy(samples.y.copy())
    return float(functional.cross_entropy(scores, labels))


def weights_of(model):
    """Quantized weights by the names of the user's layers."""
    return {name.removesuffix("__weight"): layer for name, layer in grids(model, GridWeight).items()}


def grids(model, kind):
    return {name: layer for name, layer in model.named_children() if isinstance(layer, kind)}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("options", [FULL, MIXED], ids=["int8", "mixed"])
def test_a_runtime_answers_as_the_trained_module_does(options, format_):
    x = bench().split("validate").x
    got, want = outputs(exported(options, format_), format_, x), answers(made(options), x)
    assert (got.argmax(1) == want.argmax(1)).mean() >= 0.98
    assert np.abs(got - want).mean() < 0.01 * np.abs(want).max()


@pytest.fixture(scope="module")
def original():
    return exporters.get("onnx").export(compress_zoo.build(), bench().split("calibrate").x[:2])


@pytest.mark.parametrize("options", [FULL, MIXED], ids=["int8", "mixed"])
def test_onnx_runtime_fuses_every_layer_at_least_as_well_as_after_static_quantization(options, original, tmp_path):
    fused = really_run(exported(options, "onnx"), tmp_path / "qat.onnx")
    static = convert({"mode": "static", "samples": 32}, found()["quantize"])
    plain = really_run(static.apply_graph("onnx", original, bench()), tmp_path / "ptq.onnx")
    assert (fused["QLinearConv"], fused["QGemm"], fused["QLinearAdd"]) == (3, 2, 1)
    assert not fused.keys() & {"Conv", "FusedConv", "Gemm", "FusedGemm", "Cast", "BitShift"}
    assert fused.total() <= plain.total()


@pytest.mark.parametrize("options", [FULL, MIXED], ids=["int8", "mixed"])
def test_litert_runs_integer_kernels_between_float_borders(options):
    content = exported(options, "tflite")
    kinds = Counter(exporters.get("tflite").operators(content))
    assert (kinds["QUANTIZE"], kinds["DEQUANTIZE"]) == (1, 1)
    assert not [weight for weight in exporters.get("tflite").weights(content) if weight.dtype == "float32"]
    ((given,), (taken,)) = exporters.get("tflite").tensors(content)
    assert (given.dtype, given.shape, taken.dtype, taken.shape) == ("float32", (1, 1, 12, 12), "float32", (1, 4))


def stored(options, format_):
    """Types in which the file holds the weights of the five layers, by how many elements these have."""
    layers = {weight.elements: weight.dtype for weight in exporters.get(format_).weights(exported(options, format_))}
    sizes = {name: layer.weight.numel() for name, layer in weights_of(made(options)).items()}
    return {name: layers.get(size, layers.get(size // 8)) for name, size in sizes.items()}


def test_weights_are_stored_in_their_bits_and_the_edges_in_eight():
    assert set(stored(FULL, "onnx").values()) == set(stored(FULL, "tflite").values()) == {"int8"}
    types = {"stem": "int8", "block__conv": "int4", "block__mix": "int2", "hidden": "uint8", "head": "int8"}
    assert stored(MIXED, "onnx") == types
    smallest = {"block__conv": "int4", "block__mix": "int4", "hidden": "int4"}
    assert stored(MIXED, "tflite") == types | smallest
    assert {name: layer.bits for name, layer in weights_of(made(MIXED)).items()} == {
        "stem": 8,
        "block__conv": 4,
        "block__mix": 2,
        "hidden": 1,
        "head": 8,
    }
    low = qat(bits=2, edges=4, layers={"head": {"bits": 1}}, **UNTRAINED)
    assert [layer.bits for layer in weights_of(low).values()] == [4, 2, 2, 2, 1]


@pytest.mark.parametrize("format_", FORMATS)
def test_weights_alone_are_integers_where_activations_are_left(format_):
    x = bench().split("validate").x[:64]
    content = exported(ALONE, format_)
    assert np.allclose(outputs(content, format_, x), answers(made(ALONE), x), atol=1e-4)
    assert not grids(made(ALONE), GridActivation)
    assert set(stored(ALONE, format_).values()) == {"int8", "int4"}
    kinds = Counter(exporters.get(format_).operators(content))
    assert kinds["QuantizeLinear"] + kinds["QUANTIZE"] == 0
    assert kinds["DequantizeLinear"] + kinds["DEQUANTIZE"] == 5
    assert len(content) < 0.4 * 4 * 16_700


def test_scales_of_weights_and_activations_learn():
    before, after = qat(observe=32, **UNTRAINED), qat(observe=32, lr=1e-3)
    for name, layer in weights_of(before).items():
        assert torch.allclose(layer.scale, best_scale(layer.weight.detach(), 8), rtol=0.05)
        assert not torch.allclose(layer.scale, weights_of(after)[name].scale, rtol=1e-4)
    firsts, lasts = grids(before, GridActivation), grids(after, GridActivation)
    assert all(abs(lasts[name].scale / firsts[name].scale - 1) > 1e-4 for name in firsts)
    x = bench().calibration(32)
    assert firsts["x__grid"].scale == pytest.approx((x.max() - x.min()) / 255, rel=1e-3)


def test_ranges_start_from_as_many_samples_as_are_told():
    x = bench().calibration(48)
    for count in (1, 48):
        seen = grids(qat(observe=count, **UNTRAINED), GridActivation)["x__grid"]
        assert seen.scale == pytest.approx((x[:count].max() - x[:count].min()) / 255, rel=1e-3)


@pytest.mark.parametrize("bits", [4, 2, 1])
def test_training_with_few_bits_is_better_than_rounding_alone(bits):
    chosen = {"bits": bits, "edges": bits, "observe": 32}
    assert loss(qat(epochs=3, lr=1e-3, **chosen)) < 0.8 * loss(qat(**chosen, **UNTRAINED))


def test_a_weight_takes_no_more_values_than_its_bits_can_tell():
    for layer in weights_of(made(MIXED)).values():
        steps = layer.weight.detach() / layer.scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        low, high = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1), 1: (-1, 1)}[layer.bits]
        assert low <= steps.min().round()
        assert steps.max().round() <= high
        assert layer.bits > 1 or set(steps.round().flatten().tolist()) == {-1, 1}


def test_a_teacher_keeps_the_answers_nearer_to_the_originals():
    x = bench().split("validate").x
    want = answers(compress_zoo.build(), x)
    apart = [
        np.abs(answers(qat(bits=2, edges=2, epochs=2, lr=2e-3, **options), x) - want).mean()
        for options in ({}, {"teacher": True, "alpha": 0.5}, {"teacher": True}, {"teacher": True, "temperature": 1})
    ]
    assert apart[0] > apart[1] > apart[2]
    assert apart[3] != apart[2]


def test_a_layer_can_be_left_out_by_name_and_by_type():
    left = weights_of(qat(layers={"block.*": {"skip": True}}, **UNTRAINED))
    assert set(left) == {"stem", "hidden", "head"}
    left = weights_of(qat(skip=True, types={"Linear": {"skip": False}}, **UNTRAINED))
    assert set(left) == {"hidden", "head"}
    with pytest.raises(UsageError, match=r"layers\.'blocks\.conv': matches no layer; did you mean 'block\.conv'"):
        qat(layers={"blocks.conv": {"bits": 4}}, **UNTRAINED)
    with pytest.raises(UsageError, match=r"types\.Conv3d: no such layer; this model has Conv2d, Linear"):
        qat(types={"Conv3d": {"bits": 4}}, **UNTRAINED)
    with pytest.raises(StepFailed, match=r"no Conv1d, Conv2d or Linear layer is left to quantize"):
        qat(skip=True, **UNTRAINED)


def test_zeros_of_pruning_stay_zeros_through_training_rounding_and_export():
    sparse = convert({"kind": "magnitude", "ratio": 0.7}, found()["prune"]).apply_module(compress_zoo.build(), bench())
    zeros = sparse.hidden.weight == 0
    made_ = qat(sparse, bits=4, observe=16, samples=128, lr=1e-3)
    weight = weights_of(made_)["hidden"].weight
    assert (weight[zeros] == 0).all()
    assert not torch.equal(weight, sparse.hidden.weight)
    content = exporters.get("onnx").export(made_, bench().split("calibrate").x[:2])
    kept = next(one for one in exporters.get("onnx").weights(content) if one.elements == weight.numel())
    assert kept.nonzero == int(torch.count_nonzero(weight)) <= int((~zeros).sum())


RECIPE = """
[model]
source = "compress_zoo:build"
[data]
source = "compress_zoo:load"
[[variant]]
name = "v"
steps = [{}]
"""


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ('{technique="prune",kind="magnitude",ratio=0.5},{technique="qat",bits=1}', "qat would undo the zeros"),
        ('{technique="prune",kind="magnitude",ratio=0.5},{technique="qat",edges=1}', "qat would undo the zeros"),
        ('{technique="qat"},{technique="qat"}', "qat would undo the low-bit values that qat"),
        ('{technique="qat"},{technique="prune"}', "prune would undo the low-bit values that qat"),
    ],
)
def test_senseless_orders_are_refused(steps, message):
    with pytest.raises(UsageError, match=message):
        parse(RECIPE.format(steps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bits=3", r"steps\[0\]\.bits: invalid enum value 3"),
        ('activations="int8"', r"steps\[0\]\.activations: invalid enum value 'int8'"),
        ("epochs=0", r"steps\[0\]\.epochs: expected int >= 1"),
        ("observe=0", r"steps\[0\]\.observe: expected int >= 1"),
        ("alpha=0.5", r"steps\[0\]\.alpha: it is the teacher's"),
        ('activations="none",observe=8', r"steps\[0\]\.observe: it is for ranges of activations"),
        ("teachers=true", r"steps\[0\]\.teachers: unknown key; did you mean 'teacher'"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(UsageError, match=message):
        parse(RECIPE.format(f'{{technique="qat",{options}}}'))


def test_a_forward_pass_that_cannot_be_captured_fails_in_one_line():
    with pytest.raises(StepFailed, match=r"^the model's forward pass cannot be captured: [^\n]*$"):
        qat(compress_zoo.unexportable(), **UNTRAINED)


def test_parameters_and_work_are_counted_as_in_the_original():
    sample = bench().calibration(1)
    before, after = count_module(compress_zoo.build(), sample), count_module(made(FULL), sample)
    assert after.macs == before.macs
    # Batch normalisation's 32 parameters became 16 of a bias.
    assert after.params == before.params - 16


def test_a_recipe_trains_once_and_keeps_the_result(press, tmp_path):
    recipe = RECIPE.format('{technique="qat",samples=128,observe=16}')
    first, again = (press(recipe, tmp_path / "out")["v.onnx"] for _ in range(2))
    assert (first.verdict, first.steps[0].notes) == ("ok", ())
    assert again.steps[0].seconds == first.steps[0].seconds


class Varied(nn.Module):
    """What the zoo's model has not: depthwise, groups, 1-D, recurrent, joined, pooled, clipped in place, dropped."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.point = nn.Conv2d(8, 16, 1, padding="valid")
        self.clip = nn.ReLU6(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.line = nn.Conv1d(32, 8, 3, padding=1)
        self.lone = nn.BatchNorm1d(8)
        self.memory = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.clip(self.norm(self.first(x)))
        x = functional.max_pool2d(torch.relu(self.point(self.clip(self.deep(x)))), 2)
        x = torch.cat([x, functional.hardswish(x)], 1).mean(2)
        x, _ = self.memory(self.lone(torch.relu(self.line(self.drop(x)))).transpose(1, 2))
        return {"scores": self.head(x[:, -1])}


@pytest.fixture(scope="module")
def varied():
    torch.manual_seed(0)
    model = Varied()
    x = torch.from_numpy(bench().split("train").x.copy())
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(3):
        for start in range(0, len(x), 64):
            labels = torch.from_numpy(bench().split("train").y[start : start + 64].copy())
            optimiser.zero_grad()
            functional.cross_entropy(model(x[start : start + 64])["scores"], labels).backward()
            optimiser.step()
    return model.eval()


def test_capturing_and_folding_change_no_answer(varied):
    x = bench().calibration(8)
    program = capture(varied, x[:2]).program
    # The other one has no layer before it.
    assert [node.target for node in program.nodes].count("aten.batch_norm.default") == 1
    with torch.no_grad():
        want, got = (model(torch.from_numpy(x.copy()))["scores"] for model in (varied, program))
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("format_", FORMATS)
def test_layers_of_all_kinds_run_quantized_and_what_is_left_is_named(varied, format_):
    notes = []
    model = qat(varied, notes.append, observe=32, samples=128)
    assert notes == ["left in fp32, since QAT concerns convolutions and dense layers: memory (GRU)"]
    assert set(weights_of(model)) == {"first", "deep", "point", "line", "head"}
    x = bench().split("validate").x[:96]
    content = exporters.get(format_).export(model, x[:2])
    with torch.no_grad():
        want = model(torch.from_numpy(x.copy()))["scores"].numpy()
    got = outputs(content, format_, x)
    assert (got.argmax(1) == want.argmax(1)).mean() >= 0.98
    assert np.abs(got - want).mean() < 0.01 * np.abs(want).max()
