"""ONNX: export of a torch module by the dynamo exporter, and reading of any ONNX file."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import onnx
import torch
from edgepress_protocol.manifest import TensorSpec
from onnx import ModelProto, NodeProto, numpy_helper
from torch import nn

from edgepress_host.exporters import Weight, _pack, lowerable
from edgepress_host.exporters._graphs import graphs
from edgepress_host.exporters._onnx_pools import pool_means
from edgepress_host.press.quiet import quiet

SUFFIX = ".onnx"
PRODUCER = "edgepress"


def export(module: nn.Module, example: np.ndarray) -> bytes:
    """Export with a free batch, weights inside the file, and none of the source's paths or lines in it."""
    sample = torch.from_numpy(np.array(example))
    ready = copy.deepcopy(module).eval()
    layers = lowerable(ready)
    for layer in layers:
        layer.lower("onnx")
    with quiet():
        program = torch.onnx.export(
            ready,
            (sample,),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    model = pool_means(fold_constants(program.model_proto))
    if layers:
        _pack.pack(model)
    model.producer_name, model.producer_version = PRODUCER, ""
    return bytes(forget_sources(model).SerializeToString(deterministic=True))


def forget_sources(model: ModelProto) -> ModelProto:
    """Drop the metadata in which the exporter leaves paths and lines of the user's code; changes `model`."""
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in graphs(model.graph):
        graph.doc_string = ""
        holders = [graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output]
        for holder in holders:
            del holder.metadata_props[:]
            holder.doc_string = ""
    return model


def fold_constants(model: ModelProto) -> ModelProto:
    """Turn `Constant` nodes into initializers, in subgraphs too; changes `model`.

    ONNX Runtime's quantizers skip weights in `Constant` nodes, or raise.
    """
    for graph in graphs(model.graph):
        outputs = {value.name for value in graph.output}
        kept = []
        for node in graph.node:
            tensor = _constant(node)
            if tensor is None or node.output[0] in outputs:
                kept.append(node)
            else:
                graph.initializer.append(tensor)
        del graph.node[:]
        graph.node.extend(kept)
    return model


def tensors(content: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs; a named dimension is free."""
    graph = onnx.load_from_string(content).graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_spec(value) for value in graph.input if value.name not in stored)
    return inputs, tuple(_spec(value) for value in graph.output)


def weights(content: bytes) -> list[Weight]:
    """Every initializer and every `Constant` node's tensor, subgraphs included."""
    found = []
    for graph in graphs(onnx.load_from_string(content).graph):
        constants = [tensor for node in graph.node if (tensor := _constant(node)) is not None]
        for tensor in (*graph.initializer, *constants):
            array = numpy_helper.to_array(tensor)
            found.append(
                Weight(
                    dtype=onnx.TensorProto.DataType.Name(tensor.data_type).lower(),
                    shape=tuple(array.shape),
                    sha256=hashlib.sha256(array.tobytes()).hexdigest(),
                    elements=array.size,
                    nonzero=int(np.count_nonzero(array)),
                )
            )
    return found


def operators(content: bytes) -> list[str]:
    """Operator types, subgraphs included."""
    return [node.op_type for graph in graphs(onnx.load_from_string(content).graph) for node in graph.node]


def _constant(node: NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    match attribute.name:
        case "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(attribute.t)
        case "value_float" | "value_floats":
            floats = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = numpy_helper.from_array(np.array(floats, np.float32))
        case "value_int" | "value_ints":
            integers = attribute.i if attribute.name == "value_int" else list(attribute.ints)
            tensor = numpy_helper.from_array(np.array(integers, np.int64))
        case _:
            return None
    tensor.name = node.output[0]
    return tensor


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape=shape)
