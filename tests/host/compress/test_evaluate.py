from __future__ import annotations

import numpy as np
import onnx
import pytest
from ai_edge_litert.tools import flatbuffer_utils
from edgepress_host import evaluate, exporters
from edgepress_host.exporters.onnx import fold_constants
from edgepress_host.press.data import Samples
from edgepress_host.press.measure import same_content
from edgepress_protocol.errors import UsageError
from onnx import TensorProto, helper, numpy_helper


def spoil_onnx(content):
    """Alter one bias of the last layer."""
    model = onnx.load_from_string(content)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    values = numpy_helper.to_array(bias).copy()
    values[0] += 100
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    return model.SerializeToString()


def spoil_tflite(content):
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    bias = model.buffers[graph.tensors[graph.operators[-1].inputs[2]].buffer]
    values = np.asarray(bias.data, np.uint8).view(np.float32).copy()
    values[0] += 100
    bias.data = values.view(np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


@pytest.mark.parametrize(("format_", "spoil"), [("onnx", spoil_onnx), ("tflite", spoil_tflite)])
def test_one_weight_altered_in_the_file_changes_the_accuracy_reported(format_, spoil, originals, bench):
    samples = bench.split("validate")
    before = evaluate.accuracy(format_, originals[format_], samples, evaluate.top1)
    after = evaluate.accuracy(format_, spoil(originals[format_]), samples, evaluate.top1)
    assert before > 0.9
    assert after == pytest.approx((samples.y == 0).mean(), abs=0.01)


def test_both_runtimes_compute_what_the_torch_module_computes(originals, bench):
    import compress_zoo
    import torch

    x = bench.calibration(20)
    with torch.no_grad():
        wanted = compress_zoo.build()(torch.from_numpy(x.copy())).numpy()
    for format_, content in originals.items():
        got = np.concatenate([outputs[0] for outputs in evaluate.predict(format_, content, x)])
        assert np.allclose(got, wanted, atol=1e-4)


def test_a_file_with_a_fixed_batch_is_fed_full_batches(bench):
    shape = [5, 1, 12, 12]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=0)],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = bench.calibration(13)
    got = np.concatenate([outputs[0] for outputs in evaluate.predict("onnx", model.SerializeToString(), x)])
    assert np.allclose(got, x.mean(axis=(1, 2, 3)), atol=1e-6)


def test_data_that_does_not_fit_the_model_is_refused_in_one_line(originals):
    with pytest.raises(UsageError, match=r"takes samples of shape \(1, 12, 12\), the data has \(1, 9, 9\)"):
        evaluate.accuracy(
            "onnx", originals["onnx"], Samples(np.zeros((2, 1, 9, 9), np.float32), np.zeros(2)), evaluate.top1
        )


def test_a_metric_of_the_users_own_counts(originals, bench):
    samples = bench.split("validate")
    score = evaluate.metric("compress_zoo:negative_error")
    assert evaluate.accuracy("onnx", originals["onnx"], samples, score) == pytest.approx(
        evaluate.accuracy("onnx", originals["onnx"], samples, evaluate.top1) - 1
    )
    with pytest.raises(UsageError, match="expected one of top1, neg_mse or 'module:attr'"):
        evaluate.metric("top5")


def test_neg_mse_is_better_when_nearer():
    y = np.array([[1.0], [2.0]])
    assert evaluate.neg_mse(y, y) == 0
    assert evaluate.neg_mse(y + 1, y) == -1


def with_constant_weight():
    """A dense layer whose weight sits in a `Constant` node, and a copy of it inside an `If`."""
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
    branch = lambda name: helper.make_graph(  # noqa: E731
        [
            helper.make_node("Constant", [], [f"w{name}"], value=numpy_helper.from_array(weight)),
            helper.make_node("MatMul", ["h", f"w{name}"], [f"out{name}"]),
        ],
        name,
        [],
        [helper.make_tensor_value_info(f"out{name}", TensorProto.FLOAT, None)],
    )
    dense = [constant, helper.make_node("MatMul", ["x", "w"], ["h"])]
    choice = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Greater", ["s", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    return dense, choice


def graph_of(nodes, inputs, output):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 16])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def test_weights_in_constant_nodes_are_quantized_too(bench):
    from edgepress_host.press.strict import convert
    from edgepress_host.technique import found

    dense, _ = with_constant_weight()
    content = graph_of(dense, ["x"], "h")
    quantized = convert({"mode": "dynamic"}, found()["quantize"]).apply_graph("onnx", content, bench)
    assert "int8" in {weight.dtype for weight in exporters.get("onnx").weights(quantized)}
    assert not same_content("onnx", content, quantized)


def test_weights_in_subgraphs_are_seen_so_that_a_silent_no_op_is_told(bench):
    from edgepress_host.press.strict import convert
    from edgepress_host.technique import found

    _, choice = with_constant_weight()
    choice[0] = helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0)
    content = fold_constants(onnx.load_from_string(graph_of(choice, ["h"], "y"))).SerializeToString()
    assert sum(weight.elements for weight in exporters.get("onnx").weights(content)) == 2 * 256 + 1
    quantized = convert({"mode": "dynamic"}, found()["quantize"]).apply_graph("onnx", content, bench)
    left = {weight.dtype for weight in exporters.get("onnx").weights(quantized)}
    assert same_content("onnx", content, quantized) == ("int8" not in left)


def test_an_exported_file_tells_nothing_of_the_machine_that_made_it(originals):
    from pathlib import Path

    here = str(Path(__file__).parent).encode()
    assert here not in originals["onnx"]
    assert b"compress_zoo.py" not in originals["onnx"] + originals["tflite"]
    assert b"stack_trace" not in originals["onnx"]
