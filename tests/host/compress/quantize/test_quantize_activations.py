"""Activations of static quantization: their bits, their ranges, and what is calibrated on."""

from __future__ import annotations

import onnx
import pytest
from edgepress_host import exporters
from edgepress_host.technique import StepFailed
from onnx import numpy_helper


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_activations_of_16_bits_are_nearer_than_those_of_8(format_, quantized, away):
    weights_alone, _ = quantized(format_, mode="weight_only")
    apart = {}
    for bits in (8, 16):
        content, _ = quantized(format_, mode="static", activations=bits, samples=48)
        apart[bits] = away(format_, content, before=weights_alone)
    assert 0 < apart[16] < 0.2 * apart[8]


def test_tflite_takes_activations_of_16_bits_symmetric_alone(quantized):
    with pytest.raises(StepFailed, match='activation_symmetry: LiteRT runs activations of 16 bits as "symmetric"'):
        quantized("tflite", mode="static", activations=16, activation_symmetry="asymmetric", samples=4)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_symmetric_activations_have_zero_in_the_middle(format_, quantized):
    def zero_points(content):
        if format_ == "onnx":
            graph = onnx.load_from_string(content).graph
            types = {one.name: one for one in graph.initializer}
            names = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
            return {int(numpy_helper.to_array(types[name])) - 128 for name in names}
        from ai_edge_litert.interpreter import Interpreter

        details = Interpreter(model_content=content).get_tensor_details()
        return {int(zero) for one in details for zero in one["quantization_parameters"]["zero_points"]}

    symmetric = zero_points(quantized(format_, mode="static", activation_symmetry="symmetric", samples=16)[0])
    assert symmetric <= {0, -1}
    assert not zero_points(quantized(format_, mode="static", samples=16)[0]) <= {0, -1}


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_four_methods_of_calibration_give_four_files_that_work(format_, quantized, away):
    files = {
        method: quantized(format_, mode="static", calibration=method, samples=16, **more)[0]
        for method, more in {"minmax": {}, "entropy": {}, "percentile": {"percentile": 99.0}, "mse": {}}.items()
    }
    assert len(set(files.values())) == 4
    assert away(format_, files["mse"]) < 0.1


def scales(format_, content):
    """Scales of the activations of a static file, by their names."""
    if format_ == "onnx":
        graph = onnx.load_from_string(content).graph
        stored = {one.name: one for one in graph.initializer}
        steps = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in stored]
        return {node.input[0]: float(numpy_helper.to_array(stored[node.input[1]])) for node in steps}
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(model_content=content, experimental_preserve_all_tensors=True).get_tensor_details()
    found = {one["name"]: one["quantization_parameters"]["scales"] for one in details if one["shape"][0] == 1}
    return {name: float(some[0]) for name, some in found.items() if len(some) == 1}


@pytest.mark.parametrize("count", [1, 48])
@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_ranges_come_from_as_many_samples_as_are_told(format_, count, quantized, bench):
    io = {"io": "int8"} if format_ == "tflite" else {}
    content, _ = quantized(format_, mode="static", samples=count, **io)
    x = bench.calibration(count)
    wanted = (max(0, x.max()) - min(0, x.min())) / 255
    assert min(abs(scale / wanted - 1) for scale in scales(format_, content).values()) < 1e-3


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_a_lower_percentile_gives_narrower_ranges_inside_and_leaves_the_borders(format_, quantized):
    whole = scales(format_, quantized(format_, mode="static", samples=16)[0])
    found = [
        scales(format_, quantized(format_, mode="static", calibration="percentile", percentile=one, samples=16)[0])
        for one in (100, 99, 90)
    ]
    assert found[0] == pytest.approx(whole, rel=1e-3)
    narrower = [name for name in whole if found[2][name] < 0.98 * found[1][name] < 0.98 * 0.99 * whole[name]]
    kept = [name for name in whole if found[2][name] == pytest.approx(whole[name], rel=1e-6)]
    assert len(narrower) >= 4
    assert len(kept) >= 2


@pytest.mark.parametrize("io", ["float32", "int8"])
def test_a_tflite_file_has_the_inputs_and_outputs_asked_for(io, quantized):
    content, _ = quantized("tflite", mode="static", samples=4, io=io)
    assert {spec.dtype for specs in exporters.get("tflite").tensors(content) for spec in specs} == {io}
    assert ("QUANTIZE" in exporters.get("tflite").operators(content)) == (io == "float32")
    with pytest.raises(StepFailed, match="io = int8 is for TFLite files; ONNX files keep float32"):
        quantized("onnx", mode="static", samples=4, io="int8")
