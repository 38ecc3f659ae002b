"""Small models that tests write themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUTS, CLASSES = 16, 4


def classifier(path: Path, hidden: int) -> Path:
    """Write a classifier of (N, 16) with so many hidden units and random weights; returns its path."""
    generator = np.random.default_rng(7)
    first = generator.standard_normal((INPUTS, hidden)).astype(np.float32)
    second = generator.standard_normal((hidden, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "second"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def with_one_weight_altered(path: Path, target: Path) -> Path:
    """Write a copy of a classifier whose last layer has one other weight; returns its path."""
    model = onnx.load(path)
    (second,) = [one for one in model.graph.initializer if one.name == "second"]
    weights = numpy_helper.to_array(second).copy()
    weights[0, 0] += 100.0
    second.CopyFrom(numpy_helper.from_array(weights, "second"))
    onnx.save(model, target)
    return target
