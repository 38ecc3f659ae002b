"""Weights of few bits in ONNX files: as small as they should be, and as fast and right as int8 when loaded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from edgepress_host import evaluate
from edgepress_host.exporters import _pack
from edgepress_host.exporters import onnx as onnx_exporter
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

VALUES = {1: [-1, 1], 2: [-2, -1, 0, 1], 4: list(range(-8, 8)), 8: list(range(-127, 128))}
STORED = {1: "uint8", 2: "int2", 4: "int4", 8: "int8"}


def convolution(bits):
    """One quantized convolution in QDQ form with int8 weights of few different values."""
    rng = np.random.default_rng(bits)
    weight = rng.choice(VALUES[bits], (16, 15, 3, 3)).astype(np.int8)
    stored = {
        "w": weight,
        "ws": rng.uniform(0.01, 0.02, 16).astype(np.float32),
        "b": rng.standard_normal(16).astype(np.float32),
        "xs": np.array(0.02, np.float32),
        "xz": np.array(128, np.uint8),
        "ys": np.array(0.05, np.float32),
        "yz": np.array(0, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "ys", "yz"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 15, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, 6, 6])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def loaded(content, path):
    """Operators of the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("bits", [4, 2, 1])
def test_a_packed_weight_takes_its_bits_and_runs_fused_with_the_same_outputs(bits, tmp_path):
    model = convolution(bits)
    before = model.SerializeToString()
    assert _pack.pack(model) == {"w": bits}
    after = model.SerializeToString()
    onnx.checker.check_model(model, full_check=True)
    assert len(before) - len(after) > (1 - bits / 8) * 16 * 15 * 9 - 700
    assert STORED[bits] in {weight.dtype for weight in onnx_exporter.weights(after)}
    assert loaded(after, tmp_path / "after.onnx") == loaded(before, tmp_path / "before.onnx")
    x = np.random.default_rng(0).standard_normal((4, 15, 8, 8)).astype(np.float32)
    outputs = [next(evaluate.predict("onnx", content, x))[0] for content in (before, after)]
    assert np.array_equal(*outputs)


def test_a_weight_of_eight_bits_and_a_short_one_stay_as_they_are():
    model = convolution(8)
    before = model.SerializeToString()
    assert _pack.pack(model) == {}
    assert model.SerializeToString() == before
    assert _pack.bits_of(np.ones(_pack.SMALLEST - 1, np.int8)) is None


@given(st.sampled_from([2, 4]), st.data())
def test_packed_integers_come_back(bits, data):
    kind = {2: TensorProto.INT2, 4: TensorProto.INT4}[bits]
    values = data.draw(st.lists(st.sampled_from(VALUES[bits]), min_size=1, max_size=40))
    tensor = TensorProto(data_type=kind, dims=[len(values)], raw_data=_pack.packed_bytes(np.array(values), bits))
    assert numpy_helper.to_array(tensor).astype(int).tolist() == values
