"""Means over height and width, as the pools that they are: ONNX Runtime has an integer kernel for those alone."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgepress_host.exporters._graphs import graphs

_RANK = 4


def pool_means(model: ModelProto) -> ModelProto:
    """Turn `ReduceMean` over both spatial axes of (N, C, H, W) into `GlobalAveragePool`; changes `model`.

    The exporter writes adaptive pools to 1×1, and means over (2, 3), as the former. Of float32 alone: ONNX Runtime
    pools nothing else.
    """
    graph = model.graph
    kinds = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input)}
    floats = {name: kind for name, kind in kinds.items() if kind.elem_type == TensorProto.FLOAT}
    images = {name for name, kind in floats.items() if len(kind.shape.dim) == _RANK}
    nodes: list[NodeProto] = []
    for node in graph.node:
        pooled = node.op_type == "ReduceMean" and node.input[0] in images and _axes(graph, node) == {2, 3}
        nodes += _pool(node) if pooled else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    inner = list(graphs(graph))
    used = {name for part in inner for node in part.node for name in node.input}
    used |= {value.name for part in inner for value in part.output}
    stored = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(stored)
    return model


def _axes(graph: GraphProto, node: NodeProto) -> set[int] | None:
    if len(node.input) < 2:
        return None
    stored = next((tensor for tensor in graph.initializer if tensor.name == node.input[1]), None)
    return None if stored is None else {int(axis) % _RANK for axis in numpy_helper.to_array(stored).ravel()}


def _pool(node: NodeProto) -> list[NodeProto]:
    keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
    if keeps:
        return [helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name)]
    pooled = f"{node.output[0]}_pooled"
    return [
        helper.make_node("GlobalAveragePool", node.input[:1], [pooled], name=node.name),
        helper.make_node("Flatten", [pooled], node.output, name=f"{node.name}_flat", axis=1),
    ]
