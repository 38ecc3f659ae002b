"""Weights of an ONNX graph: where they are, and how few bits are stored and expanded again when the file is loaded.

ONNX Runtime folds what depends on constants alone when it loads a file, DequantizeLinear excepted. So weights of few
bits are stored in the smallest type, and Cast, Mul and the like lead from there to the node that uses them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgepress_host.exporters import _pack
from edgepress_host.techniques.quantize.grid import Integers

MICROSOFT = "com.microsoft"
BYTE = 8
_KINDS = {"Gemm": "Linear", "MatMul": "Linear", "ConvTranspose": "ConvTranspose"}


class Held(NamedTuple):
    """A weight: its node, its tensor, its layer's name and type, its values, and the axes that each have a scale."""

    node: NodeProto
    tensor: str
    layer: str
    kind: str
    values: np.ndarray
    kept: tuple[int, ...]


def held_weights(model: ModelProto) -> list[Held]:
    """Weights of convolutions, dense and recurrent layers and embeddings, in the graph's order; each tensor once."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    found: dict[str, Held] = {}
    biased = biased_layers(model)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name not in stored or len(stored[name].dims) < 2 or name in found:
                continue
            kept = _kept(node, place, len(stored[name].dims))
            if kept is not None:
                layer, kind = layer_of(node, name, len(stored[name].dims), biased)
                found[name] = Held(node, name, layer, kind, numpy_helper.to_array(stored[name]), kept)
    return list(found.values())


def biased_layers(model: ModelProto) -> dict[str, str]:
    """Tensor → name of the layer whose bias is added to it.

    The exporter stores a dense layer's weight transposed, without its name, where inputs have more than two axes.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    added = [tuple(node.input) for node in model.graph.node if node.op_type == "Add"]
    return {
        other: bias.removesuffix(".bias")
        for pair in added
        for bias, other in (pair, pair[::-1])
        if bias in stored and bias.endswith(".bias")
    }


def layer_of(node: NodeProto, tensor: str, rank: int, biased: dict[str, str]) -> tuple[str, str]:
    """Name and type of the torch layer that a node with a weight came from."""
    kind = f"Conv{rank - 2}d" if node.op_type == "Conv" else _KINDS.get(node.op_type, node.op_type)
    return tensor.rpartition(".")[0] or biased.get(node.output[0], node.name), kind


def _kept(node: NodeProto, place: int, rank: int) -> tuple[int, ...] | None:
    """Axes of a weight along which each index is a channel; None for what is no weight."""
    match node.op_type, place:
        case "Conv", 1:
            return (0,)
        case "ConvTranspose", 1:
            return (1,)
        case "Gemm", 1:
            return (0,) if attribute(node, "transB", 0) else (1,)
        case "MatMul", 1:
            return (rank - 1,)
        case (("LSTM" | "GRU" | "RNN"), (1 | 2)):
            return (0, 1)
        case "Gather", 0:
            return (0,)
        case _:
            return None


def in_transposed_groups(held: Held) -> bool:
    """Whether several groups share the axis of a weight's outputs."""
    return held.node.op_type == "ConvTranspose" and attribute(held.node, "group", 1) > 1


def attribute(node: NodeProto, name: str, default: float) -> float:
    """Return a number among a node's attributes."""
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def stored_as(model: ModelProto, values: np.ndarray, bits: int, name: str) -> None:
    """Put a tensor `name` of int8 integers in front of the graph; it is stored in `bits` bits."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(values, np.int8), name)
    if bits == BYTE:
        model.graph.initializer.append(tensor)
        return
    for place, node in enumerate(_pack.packed(model.graph, tensor, bits)):
        node.name = f"{name}.{place}.{node.op_type}"
        model.graph.node.insert(place, node)
    _pack.raise_versions(model, {bits})


def expanded(model: ModelProto, held: Held, found: Integers) -> None:
    """Store a weight as integers, from which the runtime makes fp32 again when it loads the file."""
    drop(model, {held.tensor})
    raw = f"{held.tensor}.integers"
    constants = {"scale": found.scale} | ({"zero": found.zero.astype(np.float32)} if found.zero.any() else {})
    for part, array in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(array, f"{held.tensor}.{part}"))
    steps = [helper.make_node("Cast", [raw], [f"{raw}.real"], name=f"{raw}.Cast", to=TensorProto.FLOAT)]
    if "zero" in constants:
        inputs = [f"{raw}.real", f"{held.tensor}.zero"]
        steps.append(helper.make_node("Sub", inputs, [f"{raw}.moved"], name=f"{raw}.Sub"))
    inputs = [steps[-1].output[0], f"{held.tensor}.scale"]
    steps.append(helper.make_node("Mul", inputs, [held.tensor], name=f"{raw}.Mul"))
    for place, node in enumerate(steps):
        model.graph.node.insert(place, node)
    stored_as(model, found.values, found.bits, raw)


def drop(model: ModelProto, names: set[str]) -> None:
    """Remove stored tensors."""
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
