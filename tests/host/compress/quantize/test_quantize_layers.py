"""Layers that have options of their own, that are left out, or that the tools of a format treat apart."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from edgepress_host import exporters, technique
from edgepress_host.technique import StepFailed
from edgepress_protocol.errors import UsageError
from quantize_lab import LIMITS, kinds
from torch import nn


@pytest.mark.parametrize(("mode", "level"), [("weight_only", 1), ("dynamic", 4)])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_dense_layers_of_an_onnx_file_have_blocks_of_the_size_asked_for(mode, level, bits, quantized, away):
    symmetry = "asymmetric" if bits == 2 else "symmetric"
    options = {"mode": mode, "bits": bits, "granularity": "block", "symmetry": symmetry}
    content, notes = quantized("onnx", **options, block_size=64)
    nodes = [node for node in onnx.load_from_string(content).graph.node if node.op_type == "MatMulNBits"]
    found = [{one.name: one.i for one in node.attribute} for node in nodes]
    assert [(one["bits"], one["block_size"], one["accuracy_level"]) for one in found] == [(bits, 64, level)] * 2
    assert bool(notes) == (mode == "weight_only")
    assert away("onnx", content) < LIMITS[bits]
    assert len(quantized("onnx", **options, block_size=16)[0]) > len(content)


def test_dense_layers_of_a_tflite_file_have_blocks_at_4_bits_in_mode_dynamic(quantized, away):
    content, notes = quantized("tflite", mode="dynamic", bits=4, granularity="block", block_size=64)
    assert "float16" in {weight.dtype for weight in exporters.get("tflite").weights(content)}
    assert any("no dense layer of a multiple of 64 inputs: stem, deep, wide, back, head" in note for note in notes)
    assert away("tflite", content) < LIMITS[4]
    with pytest.raises(StepFailed, match="LiteRT runs blocks at bits = 4 in mode dynamic alone"):
        quantized("tflite", mode="weight_only", bits=4, granularity="block")
    with pytest.raises(StepFailed, match="hidden: LiteRT runs blocks of 32, 64, 128, 256 at bits = 4 alone, not of 16"):
        quantized("tflite", mode="dynamic", bits=4, granularity="block", block_size=16)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_a_layer_has_bits_of_its_own_and_can_be_left_out(format_, quantized):
    own = {"head": {"bits": 8}, "deep": {"skip": True}}
    content, _ = quantized(format_, mode="weight_only", bits=4, layers=own)
    float_ = "float" if format_ == "onnx" else "float32"
    stored = {frozenset(w.shape): w.dtype for w in exporters.get(format_).weights(content) if len(w.shape) > 1}
    assert stored[frozenset({32, 4})] == "int8"
    assert stored[frozenset({32, 576})] == "int4"
    assert stored[frozenset({8, 1, 3}) if format_ == "onnx" else frozenset({1, 3, 8})] in {float_, "int4"}
    assert float_ in stored.values() or float_ in kinds(format_, content)
    with pytest.raises(UsageError, match=r"layers\.'heads': matches no layer; did you mean 'head'"):
        quantized(format_, mode="weight_only", layers={"heads": {"bits": 4}})


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_a_type_of_layers_has_bits_of_its_own_and_a_name_goes_before_it(format_, quantized):
    float_ = "float" if format_ == "onnx" else "float32"
    hidden, head, point = (frozenset(shape) for shape in ({32, 576}, {32, 4}, {16, 8, 1}))

    def stored(**options):
        content, _ = quantized(format_, mode="weight_only", **options)
        return {frozenset(w.shape): w.dtype for w in exporters.get(format_).weights(content) if len(w.shape) > 1}

    found = stored(types={"Linear": {"bits": 4}}, layers={"head": {"bits": 2}})
    assert (found[point], found[hidden], found[head]) == ("int8", "int4", "int2")
    found = stored(skip=True, types={"Linear": {"skip": False}}, layers={"h*d": {"skip": True}})
    assert (found[point], found[hidden], found[head]) == (float_, "int8", float_)
    with pytest.raises(UsageError, match=r"types\.Conv3d: no such layer; this model has Conv2d, Linear"):
        stored(types={"Conv3d": {"bits": 4}})


def test_recurrent_layers_have_few_bits_in_mode_weight_only_and_are_named_where_they_cannot(bench, quantized, away):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.LSTM(12, 8, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.cells(x.flatten(1, 2))[0][:, -1])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = exporters.get("onnx").export(Recurrent().eval(), bench.calibration(2))
    content, _ = quantized("onnx", before, mode="weight_only", bits=4)
    stored = [weight for weight in exporters.get("onnx").weights(content) if weight.dtype == "int4"]
    assert sorted(weight.shape for weight in stored) == [(1, 32, 8), (1, 32, 12), (4, 8)]
    assert 0 < away("onnx", content, before=before) < 0.3
    _, notes = quantized("onnx", before, mode="dynamic", bits=4)
    assert any("left at 8 bits, the fewest that ONNX Runtime's dynamic LSTM takes" in note for note in notes)
    _, notes = quantized("onnx", before, mode="static", samples=16)
    assert any(note.startswith("left in fp32, for which ONNX Runtime has no static integer kernel: ") for note in notes)


@pytest.mark.parametrize(("groups", "scales"), [(1, 4), (2, 1)])
def test_transposed_convolutions_have_a_scale_for_each_channel_or_one_for_groups(
    groups, scales, bench, quantized, away
):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 2, stride=2, groups=groups)).eval()
    before = exporters.get("onnx").export(model, bench.calibration(2))
    content, notes = quantized("onnx", before, mode="static", samples=32)
    graph = onnx.load_from_string(content).graph
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    assert (stored["1.weight_quantized"].dtype, stored["1.weight_scale"].size) == (np.int8, scales)
    assert 0 < away("onnx", content, before=before) < 0.05
    assert notes == (["one scale a tensor, which static transposed convolutions with groups need: 1"] * (groups == 2))
    only, silent = quantized("onnx", before, mode="weight_only")
    assert not silent
    scales_of = {one.name: one.dims for one in onnx.load_from_string(only).graph.initializer if "scale" in one.name}
    assert sorted(max(dims) for dims in scales_of.values()) == sorted([4, 4 // groups])


def test_a_file_without_weights_is_refused_with_what_it_has(bench, quantized):
    node = onnx.helper.make_node("Erf", ["x"], ["y"])
    info = [onnx.helper.make_tensor_value_info(name, 1, ["batch", 1, 12, 12]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", info[:1], info[1:])
    content = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(StepFailed, match="no operator of this file has weights that can be quantized; it has Erf"):
        quantized("onnx", content.SerializeToString(), mode="weight_only")


def test_a_file_of_operators_that_have_no_integer_kernel_is_refused_by_name_with_a_way_out(quantized):
    rng = np.random.default_rng(0)
    stored = {
        "shape": np.array([1, -1, 12]),
        "cells.w": rng.standard_normal((1, 24, 12)).astype(np.float32),
        "cells.r": rng.standard_normal((1, 24, 8)).astype(np.float32),
    }
    nodes = [
        onnx.helper.make_node("Reshape", ["x", "shape"], ["steps"]),
        onnx.helper.make_node("GRU", ["steps", "cells.w", "cells.r"], ["y"], hidden_size=8),
    ]
    values = [onnx.helper.make_tensor_value_info("x", 1, ["batch", 1, 12, 12])]
    values.append(onnx.helper.make_tensor_value_info("y", 1, None))
    held = [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], held)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    line = (
        r"^ONNX Runtime has no static integer kernel for cells \(GRU\), cells \(GRU\); use mode weight_only or dynamic$"
    )
    with pytest.raises(StepFailed, match=line):
        quantized("onnx", model.SerializeToString(), mode="static", samples=4)


def test_shared_values_stay_as_many_with_one_scale_and_the_loss_is_named_otherwise(bench, quantized, net):
    clustered = technique.found()["cluster"](bits=3).apply_module(net, bench)
    content = exporters.get("onnx").export(clustered, bench.calibration(2))
    (whole, silent), (parted, notes) = (
        quantized("onnx", content, mode="weight_only", granularity=one) for one in ("tensor", "channel")
    )

    def most(file):
        tensors = onnx.load_from_string(file).graph.initializer
        return max(len(np.unique(onnx.numpy_helper.to_array(one))) for one in tensors if len(one.dims) > 1)

    assert most(whole) == 8 < most(parted)
    assert not silent
    assert notes[0].startswith("weights that shared values share fewer with a scale a channel: ")
