"""Edits of a TFLite file that its converter has no option for: float borders, weights in 4 bits, nearest neighbours."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgepress_host.exporters._pack import packed_bytes

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "DEQUANTIZE", "FULLY_CONNECTED")
_LIMITS = (-8, 7)


def finished(content: bytes) -> bytes:
    """Return a fully quantized file with float32 inputs and outputs, and with weights of up to 4 bits as int4."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    _float_borders(model)
    _pack_weights(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def with_nearest(content: bytes) -> bytes:
    """Return a file that takes nearest neighbours as PyTorch's mode "nearest" does: at floor(place · in / out).

    The converter (LiteRT Torch 0.10) asks for the one nearest to the middle of a pixel, which is another one but where
    a size grows by a whole factor.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    resizing = {
        number
        for number, code in enumerate(model.operatorCodes)
        if code.builtinCode == schema.BuiltinOperator.RESIZE_NEAREST_NEIGHBOR
    }
    found = [op for graph in model.subgraphs for op in graph.operators if op.opcodeIndex in resizing]
    if not found:
        return content
    for op in found:
        op.builtinOptions.halfPixelCenters = False
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def with_grids(content: bytes, grids: Sequence[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Return an fp32 file with the given weights stored as integers, and a DEQUANTIZE behind each.

    A grid is a weight (C_out, …) and its scales (C_out,). Raises ValueError where the file holds one in no form.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    left: set[int] = set()
    for weight, scale in grids:
        found = list(_holding(model, weight, scale))
        if not found:
            raise ValueError(f"the converter left no tensor with the weight of shape {weight.shape}")
        for index, axis, codes in found:
            tensor = graph.tensors[index]
            integers = copy.copy(tensor)
            integers.name = tensor.name + b".int8"
            integers.type, integers.buffer = schema.TensorType.INT8, len(model.buffers)
            integers.quantization = schema.QuantizationParametersT(
                scale=scale.astype(np.float32), zeroPoint=np.zeros(len(scale), np.int64), quantizedDimension=axis
            )
            model.buffers.append(schema.BufferT(data=codes.reshape(-1).view(np.uint8)))
            left.add(tensor.buffer)
            tensor.buffer = 0
            graph.tensors.append(integers)
            graph.operators.insert(0, _operator(model, "DEQUANTIZE", len(graph.tensors) - 1, index))
    for buffer in left - {tensor.buffer for one in model.subgraphs for tensor in one.tensors}:
        model.buffers[buffer].data = None
    _pack_weights(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _holding(model: Any, weight: np.ndarray, scale: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield number, channel axis and int8 codes of each constant that is the weight in whatever order of its axes."""
    from ai_edge_litert import schema_py_generated as schema

    in_order = np.sort(weight, axis=None)
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None or len(data) != weight.nbytes:
            continue
        values = np.asarray(data, np.uint8).view(np.float32).reshape(tensor.shape)
        if not np.array_equal(np.sort(values, axis=None), in_order):
            continue
        for axis in (axis for axis, size in enumerate(values.shape) if size == len(scale)):
            along = scale.reshape([-1 if one == axis else 1 for one in range(values.ndim)])
            codes = np.rint(values / along)
            if np.allclose(codes * along, values, rtol=1e-6, atol=0) and np.abs(codes).max() <= 127:
                yield index, axis, codes.astype(np.int8)
                break


def _float_borders(model: Any) -> None:
    """Put QUANTIZE behind integer inputs of the main graph and DEQUANTIZE before its integer outputs."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    graph.inputs, graph.outputs = [int(one) for one in graph.inputs], [int(one) for one in graph.outputs]
    new_inputs, new_outputs = {}, {}
    first, last = [], []
    for old in graph.inputs:
        if graph.tensors[old].type == schema.TensorType.INT8:
            new_inputs[old] = _float_copy(graph, old)
            first.append(_operator(model, "QUANTIZE", new_inputs[old], old))
    for old in graph.outputs:
        if graph.tensors[old].type == schema.TensorType.INT8:
            new_outputs[old] = _float_copy(graph, old)
            last.append(_operator(model, "DEQUANTIZE", old, new_outputs[old]))
    graph.operators = [*first, *graph.operators, *last]
    graph.inputs = [new_inputs.get(old, old) for old in graph.inputs]
    graph.outputs = [new_outputs.get(old, old) for old in graph.outputs]
    for signature in model.signatureDefs or ():
        for maps, new in ((signature.inputs, new_inputs), (signature.outputs, new_outputs)):
            for one in maps or ():
                one.tensorIndex = new.get(one.tensorIndex, one.tensorIndex)


def _float_copy(graph: Any, old: int) -> int:
    """Add a float32 tensor that takes an integer one's name and place at the border; return its number."""
    from ai_edge_litert import schema_py_generated as schema

    tensor = copy.copy(graph.tensors[old])
    graph.tensors[old].name = tensor.name + b".int8"
    tensor.type, tensor.quantization, tensor.buffer = schema.TensorType.FLOAT32, None, 0
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(model: Any, kind: str, source: int, target: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    code = getattr(schema.BuiltinOperator, kind)
    known = [one.builtinCode for one in model.operatorCodes]
    if code not in known:
        model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=code, version=2, builtinCode=code))
        known.append(code)
    return schema.OperatorT(opcodeIndex=known.index(code), inputs=[source], outputs=[target])


def _pack_weights(model: Any) -> None:
    """Store int8 weights of layers as int4 where all their values fit."""
    from ai_edge_litert import schema_py_generated as schema

    weighted = {getattr(schema.BuiltinOperator, name) for name in _WEIGHTED}
    for graph in model.subgraphs:
        taken: dict[int, set[int]] = {}
        for op in graph.operators:
            for index in op.inputs:
                taken.setdefault(int(index), set()).add(model.operatorCodes[op.opcodeIndex].builtinCode)
        for index, kinds in taken.items():
            tensor = graph.tensors[index]
            data = model.buffers[tensor.buffer].data
            if tensor.type != schema.TensorType.INT8 or data is None or len(data) == 0 or not kinds <= weighted:
                continue
            values = np.asarray(data, np.uint8).view(np.int8)
            if _LIMITS[0] <= values.min() and values.max() <= _LIMITS[1]:
                model.buffers[tensor.buffer].data = np.frombuffer(packed_bytes(values, 4), np.uint8)
                tensor.type = schema.TensorType.INT4
