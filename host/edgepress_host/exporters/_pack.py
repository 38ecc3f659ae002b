"""ONNX: store int8 weights that fit in 4, 2 or 1 bits in that many, and let the runtime expand them when it loads.

A packed weight is followed by standard operators on constants that give the int8 tensor back. ONNX Runtime folds them
when it loads the file, before it fuses quantized layers; so the layers run as fast as those of an int8 file. The types
by themselves do not: a convolution whose DequantizeLinear reads INT4 runs in fp32, and one that reads INT2 does not
load (ONNX Runtime 1.31).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

SMALLEST = 64
"""Elements below which the operators that expand a weight would take more room than it saves."""

_RANGES = {2: (-2, 1), 4: (-8, 7)}
_TYPES = {2: TensorProto.INT2, 4: TensorProto.INT4}
_OPSETS = {1: 18, 2: 25, 4: 21}
"""The first opset that has what a packed weight needs: BitwiseAnd; INT2; INT4."""

_IR_VERSIONS = {1: 8, 2: 13, 4: 10}


def pack(model: ModelProto) -> dict[str, int]:
    """Pack the int8 initializers that a DequantizeLinear reads, where their values fit; changes `model`.

    Returns the bits of each packed weight by the name of the tensor that holds its int8 values when it is loaded.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    read = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"]
    fits: dict[str, int] = {}
    for name in dict.fromkeys(read):
        if name in stored and stored[name].data_type == TensorProto.INT8:
            bits = bits_of(numpy_helper.to_array(stored[name]))
            if bits is not None:
                fits[name] = bits
    for name, bits in fits.items():
        nodes = list(packed(graph, stored[name], bits))
        for position, node in enumerate(nodes):
            graph.node.insert(position, node)
        graph.initializer.remove(stored[name])
    if fits:
        raise_versions(model, set(fits.values()))
    return fits


def bits_of(weight: np.ndarray) -> int | None:
    """Return the fewest bits that hold an int8 weight: 1 for values of -1 and 1, 2, or 4; None where it takes 8.

    >>> bits_of(np.tile(np.array([-1, 1], np.int8), 32)), bits_of(np.tile(np.array([-1, 0, 1, 1], np.int8), 16))
    (1, 2)
    >>> bits_of(np.arange(-64, 64, dtype=np.int8)) is None
    True
    """
    if weight.size < SMALLEST:
        return None
    low, high = int(weight.min()), int(weight.max())
    if (low, high) == (-1, 1) and not (weight == 0).any():
        return 1
    return next((bits for bits, (least, most) in _RANGES.items() if least <= low and high <= most), None)


def packed(graph: GraphProto, tensor: TensorProto, bits: int) -> Iterator[NodeProto]:
    """Add a weight packed into 4, 2 or 1 bits to the graph, and yield the nodes that make the int8 `tensor` of it."""
    name, values = tensor.name, numpy_helper.to_array(tensor)
    if bits == 1:
        yield from _expanded_bits(graph, name, values)
        return
    packed = TensorProto(name=f"{name}.int{bits}", data_type=_TYPES[bits], dims=values.shape)
    packed.raw_data = packed_bytes(values, bits)
    graph.initializer.append(packed)
    yield helper.make_node("Cast", [packed.name], [name], to=TensorProto.INT8)


def packed_bytes(values: np.ndarray, bits: int) -> bytes:
    """Pack integers in two's complement, the first one in the lowest bits; the last byte is filled up with zeros.

    >>> packed_bytes(np.array([1, -1, 2]), 4).hex()
    'f102'
    """
    each = 8 // bits
    codes = values.reshape(-1).astype(np.int64) & ((1 << bits) - 1)
    columns = np.pad(codes, (0, -len(codes) % each)).reshape(-1, each)
    shifted: np.ndarray = columns << (bits * np.arange(each))
    return bytes(shifted.sum(axis=1).astype(np.uint8).tobytes())


def _expanded_bits(graph: GraphProto, name: str, values: np.ndarray) -> Iterator[NodeProto]:
    """Eight signs per byte: shift, mask, look up -1 or 1, cut off what fills the last byte, and give the shape back."""
    signs = np.packbits(values.reshape(-1) > 0, bitorder="little")
    constants: dict[str, np.ndarray] = {
        "bits": signs[:, np.newaxis],
        "places": np.arange(8, dtype=np.uint8),
        "one": np.array(1, np.uint8),
        "signs": np.array([-1, 1], np.int8),
        "flat": np.array([-1], np.int64),
        "start": np.array([0], np.int64),
        "end": np.array([values.size], np.int64),
        "shape": np.array(values.shape, np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(array, f"{name}.{key}") for key, array in constants.items())
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("BitShift", ["bits", "places"], "shifted", {"direction": "RIGHT"}),
        ("BitwiseAnd", ["shifted", "one"], "masked", {}),
        ("Cast", ["masked"], "index", {"to": TensorProto.INT32}),
        ("Gather", ["signs", "index"], "bytes", {}),
        ("Reshape", ["bytes", "flat"], "all", {}),
        ("Slice", ["all", "start", "end"], "sliced", {}),
    ]
    for kind, inputs, output, attributes in steps:
        yield helper.make_node(kind, [f"{name}.{one}" for one in inputs], [f"{name}.{output}"], **attributes)
    yield helper.make_node("Reshape", [f"{name}.sliced", f"{name}.shape"], [name])


def raise_versions(model: ModelProto, used: set[int]) -> None:
    """Declare the opset that the packed types need.

    Between the exporter's opset and these, operators only gained types, but for GroupNormalization.
    """
    wanted = max(_OPSETS[bits] for bits in used)
    opset = next(one for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if opset.version < wanted:
        if any(node.op_type == "GroupNormalization" for node in model.graph.node):
            model.CopyFrom(onnx.version_converter.convert_version(model, wanted))
        else:
            opset.version = wanted
    model.ir_version = max(model.ir_version, *(_IR_VERSIONS[bits] for bits in used))
