"""Equal scales and zero points are stored once, and the file answers as before."""

from __future__ import annotations

import compress_zoo
import numpy as np
import onnx
import pytest
from edgepress_host import evaluate, exporters
from edgepress_host.technique import found
from edgepress_host.techniques.quantize.onnx_sharing import share_grids
from onnx import TensorProto, helper, numpy_helper
from qat_lab import bench


@pytest.fixture(scope="module")
def content():
    example = bench().split("calibrate").x[:2]
    plain = exporters.get("onnx").export(compress_zoo.build(), example)
    return found()["quantize"](mode="static", samples=16).apply_graph("onnx", plain, bench())


def test_no_zero_point_of_a_static_file_is_stored_twice(content):
    graph = onnx.load_from_string(content).graph
    kinds = {"QuantizeLinear", "DequantizeLinear"}
    grids = {name for node in graph.node if node.op_type in kinds for name in node.input[1:]}
    stored = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in grids]
    values = [(array.dtype.str, array.shape, array.tobytes()) for array in stored]
    assert len(values) > 5
    assert len(values) == len(set(values))
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


def doubled():
    """Return a file whose scales and zero points are equal, and one of them is a layer's own value, too."""
    data = {
        "weight": np.arange(-4, 4, dtype=np.int8).reshape(2, 4),
        **{f"scale_{name}": np.float32(0.5) for name in "ab"},
        **{f"zero_{name}": np.int8(0) for name in "ab"},
        "offset": np.float32(0.5),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale_a", "zero_a"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale_b", "zero_b"], ["r"]),
        helper.make_node("DequantizeLinear", ["weight", "offset", "zero_b"], ["w"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Add", ["m", "offset"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 2])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in data.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_a_layer_computes_with_stays_its_own():
    before = doubled().SerializeToString()
    model = share_grids(doubled())
    assert [tensor.name for tensor in model.graph.initializer] == ["weight", "scale_a", "zero_a", "offset"]
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    answers = [next(evaluate.predict("onnx", content, x))[0] for content in (before, model.SerializeToString())]
    assert np.array_equal(*answers)
