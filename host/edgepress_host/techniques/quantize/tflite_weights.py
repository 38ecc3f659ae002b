"""The weights of a TFLite file: which operators hold them, of which torch layers they are, and how they are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

FLOAT32 = 0
KINDS = {"CONV_2D": "Conv2d", "DEPTHWISE_CONV_2D": "Conv2d", "FULLY_CONNECTED": "Linear"}
_CHANNELS = {"CONV_2D": (0,), "DEPTHWISE_CONV_2D": (3,), "FULLY_CONNECTED": (0,)}


class Held(NamedTuple):
    """A weight: its operator's kind and first output, its layer, its tensor's number and its values."""

    operator: str
    output: str
    layer: str
    tensor: int
    values: np.ndarray

    @property
    def kept(self) -> tuple[int, ...]:
        """Axes of the weight along which each index is a channel."""
        return _CHANNELS[self.operator]


def held_weights(content: bytes) -> list[Held]:
    """Float32 weights of convolutions and dense layers, in the graph's order."""
    from ai_edge_litert.tools import flatbuffer_utils

    from edgepress_host.exporters.tflite import operators

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    found = []
    for op, kind in zip(graph.operators, operators(content), strict=False):
        tensor = graph.tensors[op.inputs[1]] if kind in KINDS else None
        data = None if tensor is None else model.buffers[tensor.buffer].data
        if tensor is None or data is None or len(data) == 0 or tensor.type != FLOAT32:
            continue
        values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32).reshape(tuple(tensor.shape))
        output = graph.tensors[op.outputs[0]].name.decode()
        found.append(Held(kind, output, layer_name(tensor.name.decode()), int(op.inputs[1]), values))
    return found


def layers(content: bytes) -> dict[str, tuple[str, str]]:
    """Output tensor of an operator → (layer name, layer type) for operators that hold weights."""
    return {one.output: (one.layer, KINDS[one.operator]) for one in held_weights(content)}


def layer_name(tensor: str) -> str:
    """Torch name of the layer that a tensor came from.

    >>> layer_name("net.Net/torch.nn.modules.container.Sequential_s/net.B_0/torch.nn.modules.conv.Conv2d_c1;1")
    's.0.c1'
    """
    path = re.sub(r";\d*$", "", tensor).rpartition(";;")[2].split("/")[1:]
    return ".".join(part.rpartition(".")[2].partition("_")[2] for part in path) or tensor


def with_values(content: bytes, values: Mapping[int, np.ndarray]) -> bytes:
    """Put other float32 values of the same shape into tensors, by their numbers."""
    from ai_edge_litert.tools import flatbuffer_utils

    if not values:
        return content
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    for tensor, real in values.items():
        data = np.frombuffer(np.ascontiguousarray(real, np.float32).tobytes(), np.uint8)
        model.buffers[graph.tensors[tensor].buffer].data = data
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def stored_types(content: bytes) -> list[str]:
    """Types, such as INT8, of the weights of the operators of our kinds that have stored weights, in their order."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    from edgepress_host.exporters.tflite import operators

    types = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    made_by = {index: op for op in graph.operators for index in op.outputs}
    found = []
    for op, kind in zip(graph.operators, operators(content), strict=False):
        if kind not in KINDS:
            continue
        place = op.inputs[1]
        while place in made_by and len(made_by[place].inputs) == 1:
            place = made_by[place].inputs[0]  # a DEQUANTIZE between
        tensor = graph.tensors[place]
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            found.append(types[tensor.type])
    return found
