"""Equal scales and zero points of a quantized file, stored once: hundreds of channels have the zero point 0."""

from __future__ import annotations

from onnx import ModelProto, numpy_helper

_GRIDS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def share_grids(model: ModelProto) -> ModelProto:
    """Let QDQ nodes name one stored tensor where scales or zero points are equal; changes `model`."""
    graph = model.graph
    others = {name for node in graph.node if node.op_type not in _GRIDS for name in node.input}
    others |= {node.input[0] for node in graph.node if node.op_type in _GRIDS}
    others |= {value.name for value in graph.output}
    # A subgraph may name any tensor of the graph around it.
    nested = any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute)
    if nested:
        return model
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    names: dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        if tensor.name not in others and tensor.name != (same := first.setdefault(key, tensor.name)):
            names[tensor.name] = same
        else:
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return model
