"""Dense layers of an ONNX file as MatMulNBits: weights of 8, 4 or 2 bits in blocks, which stay packed in memory."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgepress_host.exporters._pack import packed_bytes
from edgepress_host.techniques.quantize.grid import integers
from edgepress_host.techniques.quantize.onnx_weights import MICROSOFT, Held, attribute, drop
from edgepress_host.techniques.quantize.plan import WeightPlan, listed

_FLOAT, _INT8 = 1, 4
"""Levels of accuracy of MatMulNBits: arithmetic in fp32, or on activations quantized to int8 as they come."""


def put(model: ModelProto, held: Held, bits: int, plan: WeightPlan, *, integer: bool) -> bool:
    """Make a dense layer's nodes MatMulNBits; tell whether that could be done."""
    users = [node for node in model.graph.node if held.tensor in node.input]
    if plan.block_size is None or not all(_fits(node, held) for node in users):
        return False
    rows = held.values if held.kept == (0,) else held.values.T  # (N, K)
    n, k = rows.shape
    size = plan.block_size
    blocked = np.pad(rows, [(0, 0), (0, -k % size)]).reshape(n, -1, size)
    found = integers(blocked, bits, (0, 1), symmetric=plan.symmetric, method=plan.method)
    middle = 1 << (bits - 1)
    # Each row of zero points begins at a byte.
    zeros = found.zero.astype(np.int16).reshape(n, -1) + middle
    zeros = np.pad(zeros, [(0, 0), (0, -zeros.shape[1] % (8 // bits))])
    tensors = {
        "blocks": _bytes(found.values.astype(np.int16) + middle, bits).reshape(n, blocked.shape[1], -1),
        "scale": found.scale.reshape(-1),
        "zero": _bytes(zeros, bits),
    }
    for part, array in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(array, f"{held.tensor}.{part}"))
    drop(model, {held.tensor})
    for node in users:
        bias = node.input[2] if len(node.input) > 2 else ""
        inputs = [node.input[0], *(f"{held.tensor}.{part}" for part in tensors), "", bias]
        name, output = node.name, node.output[0]
        level = _INT8 if integer else _FLOAT
        shape = {"K": k, "N": n, "bits": bits, "block_size": size, "accuracy_level": level}
        node.CopyFrom(helper.make_node("MatMulNBits", inputs, [output], name=name, domain=MICROSOFT, **shape))
    if all(entry.domain != MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return True


def say_what_took_none(chosen: list[Held], plan: WeightPlan) -> None:
    """Note the layers for which there is no kernel with blocks."""
    names = [held.layer for held in chosen if not _fits(held.node, held)]
    if names:
        plan.note(f"granularity block is for dense layers; one scale a channel in {listed(names)}")


def _bytes(values: np.ndarray, bits: int) -> np.ndarray:
    return np.frombuffer(packed_bytes(values, bits), np.uint8)


def _fits(node: NodeProto, held: Held) -> bool:
    if node.op_type == "MatMulNBits":
        return True
    if len(held.values.shape) != 2 or held.tensor not in node.input:
        return False
    if node.op_type == "Gemm":
        return attribute(node, "transA", 0) == 0 and attribute(node, "alpha", 1) == 1 == attribute(node, "beta", 1)
    return node.op_type == "MatMul" and node.input[1] == held.tensor
