"""Post-training quantization of an ONNX file, by ONNX Runtime's quantizer with ranges of our own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from edgepress_host.evaluate import BATCH
from edgepress_host.exporters.onnx import fold_constants, forget_sources
from edgepress_host.press.quiet import quiet
from edgepress_host.techniques.quantize.ranges import Method, ranges

DYNAMIC_OPERATORS = ["MatMul", "Gemm", "LSTM", "Attention"]
"""Without Conv: dynamically quantized convolutions run 8 to 30 times slower than fp32 ones."""

_KINDS = {"Gemm": "Linear", "MatMul": "Linear", "ConvTranspose": "ConvTranspose"}


def to_fp16(content: bytes) -> bytes:
    """Weights and arithmetic in half precision; inputs and outputs stay fp32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        return _finish(convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True))


def to_dynamic(content: bytes, *, skip: set[str]) -> bytes:
    """Int8 weights per channel; activations are quantized as they come, in dense and recurrent layers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(), tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.onnx"
        quantize_dynamic(
            _prepared(content),
            target,
            op_types_to_quantize=DYNAMIC_OPERATORS,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(skip),
        )
        return _finish(onnx.load(target))


def to_static(content: bytes, samples: np.ndarray, *, method: Method, percentile: float, skip: set[str]) -> bytes:
    """Int8 weights per channel and uint8 activations, in QDQ form: the pair that fuses on x86."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    with quiet(), tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(content)
        whole = {value.name for value in (*prepared.graph.input, *prepared.graph.output)}
        found = ranges(lambda: _activations(prepared, samples), method, percentile=percentile, whole=whole)
        data = {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high) in found.items()}
        cache = Path(folder) / "ranges.json"
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), cache)
        target = Path(folder) / "out.onnx"
        quantize_static(
            prepared,
            target,
            calibration_cache_path=cache,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(skip),
        )
        return _finish(onnx.load(target))


def layers(content: bytes) -> dict[str, tuple[str, str]]:
    """Node name → (layer name, layer type) of the nodes that hold weights, as they are called while quantizing."""
    with quiet():
        graph = _prepared(content).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        held = [stored[name] for name in node.input if name in stored and len(stored[name].dims) > 1]
        if held:
            kind = f"Conv{len(held[0].dims) - 2}d" if node.op_type == "Conv" else _KINDS.get(node.op_type, node.op_type)
            found[node.name] = (held[0].name.rpartition(".")[0] or node.name, kind)
    return found


def _prepared(content: bytes) -> ModelProto:
    """Fold constants and infer shapes, without which the quantizer skips weights or raises."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "prepared.onnx"
        onnx.save(fold_constants(onnx.load_from_string(content)), source)
        quant_pre_process(source, target, skip_symbolic_shape=True)
        model = onnx.load(target)
    _name_nodes(model)
    _forget_shapes_of_weights(model)
    return model


def _name_nodes(model: ModelProto) -> None:
    """Give every node a name: exclusion is by name, and foreign files may have none."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"


def _forget_shapes_of_weights(model: ModelProto) -> None:
    """Drop recorded shapes of stored tensors: the quantizer transposes some, and then refuses the old shape."""
    stored = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in stored]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _activations(model: ModelProto, samples: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Run the samples and yield every fp32 tensor that flows between nodes."""
    import onnxruntime

    watched = ModelProto()
    watched.CopyFrom(model)
    shown = {value.name for value in watched.graph.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in watched.graph.value_info}
    for node in watched.graph.node:
        for name in node.output:
            if name and name not in shown and kinds.get(name, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT:
                watched.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    step = first.shape[0] if isinstance(first.shape[0], int) else BATCH
    names = [output.name for output in session.get_outputs()]
    for start in range(0, len(samples) - len(samples) % step or len(samples), step):
        part = samples[start : start + step]
        yield {first.name: part} | {
            name: value
            for name, value in zip(names, session.run(names, {first.name: part}), strict=True)
            if value.dtype == np.float32 and value.size
        }


def _finish(model: ModelProto) -> bytes:
    return bytes(forget_sources(model).SerializeToString(deterministic=True))
