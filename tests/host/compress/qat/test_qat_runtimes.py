"""Quantization-aware training: what both runtimes really run."""

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
from edgepress_host import exporters
from edgepress_host.press.strict import convert
from edgepress_host.technique import found
from edgepress_host.techniques.qat.capture import capture
from edgepress_host.techniques.qat.grids import GridActivation
from qat_lab import ALONE, FULL, MIXED, answers, bench, grids, made, outputs, qat, weights_of
from torch import nn
from torch.nn import functional

FORMATS = ["onnx", "tflite"]


@functools.cache
def _exported(options, format_):
    return exporters.get(format_).export(made(msgspec.json.decode(options)), bench().split("calibrate").x[:2])


def exported(options, format_):
    return _exported(msgspec.json.encode(options), format_)


def really_run(content, path):
    """Operators of the graph that ONNX Runtime made of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


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
