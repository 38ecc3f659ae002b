"""Post-training quantization of a TFLite file, by AI Edge Quantizer with ranges of our own.

Its own calibration is a moving average, which clips; ours is the same as for ONNX.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgepress_host.press.quiet import quiet
from edgepress_host.techniques.quantize.ranges import Method, ranges

_KINDS = {"CONV_2D": "Conv2d", "DEPTHWISE_CONV_2D": "Conv2d", "FULLY_CONNECTED": "Linear"}


def to_fp16(content: bytes) -> bytes:
    """Weights in half precision; arithmetic, inputs and outputs stay fp32."""
    with quiet():
        from ai_edge_quantizer import qtyping, quantizer

        tool = quantizer.Quantizer(content)
        tool.add_weight_only_config(
            ".*",
            qtyping.TFLOperationName.ALL_SUPPORTED,
            num_bits=16,
            granularity=qtyping.QuantGranularity.TENSORWISE,
            algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
        )
        return _run(tool)


def to_dynamic(content: bytes, *, skip: set[str]) -> bytes:
    """Int8 weights per channel; activations are quantized as they come."""
    with quiet():
        from ai_edge_quantizer import quantizer, recipe

        tool = quantizer.Quantizer(content, recipe.dynamic_wi8_afp32())
        _leave_out(tool, skip)
        return _run(tool)


def to_static(
    content: bytes, samples: np.ndarray, *, method: Method, percentile: float, skip: set[str], integer_io: bool
) -> bytes:
    """Int8 weights per channel and int8 activations; inputs and outputs stay fp32 unless `integer_io`."""
    with quiet():
        from ai_edge_quantizer import quantizer, recipe
        from ai_edge_quantizer.qtyping import TFLOperationName

        tool = quantizer.Quantizer(content, recipe.static_wi8_ai8())
        if not integer_io:
            for border in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
                tool.update_quantization_recipe(".*", border, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
        _leave_out(tool, skip)
        interpreter = _interpreter(content)
        key, signature = next(iter(interpreter.get_signature_list().items()))
        # One sample through the tool's own calibration tells which tensors it wants ranges of, and in what shape.
        wanted = tool.calibrate({key: [{signature["inputs"][0]: samples[:1]}]}, num_threads=1)
        borders = (*interpreter.get_input_details(), *interpreter.get_output_details())
        found = ranges(
            lambda: _activations(interpreter, samples, set(wanted)),
            method,
            percentile=percentile,
            whole={details["name"] for details in borders},
        )
        for name, statistics in wanted.items():
            if name in found:
                low, high = found[name]
                statistics["min"] = np.full_like(statistics["min"], low)
                statistics["max"] = np.full_like(statistics["max"], high)
        return _run(tool, wanted)


def layers(content: bytes) -> dict[str, tuple[str, str]]:
    """Output tensor of an operator → (layer name, layer type) for operators that hold weights."""
    from ai_edge_litert.tools import flatbuffer_utils

    from edgepress_host.exporters.tflite import operators

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    found = {}
    for op, kind in zip(graph.operators, operators(content), strict=False):
        if kind not in _KINDS:
            continue
        weight = graph.tensors[op.inputs[1]].name.decode()
        found[graph.tensors[op.outputs[0]].name.decode()] = (layer_name(weight), _KINDS[kind])
    return found


def layer_name(tensor: str) -> str:
    """Torch name of the layer that a tensor came from.

    >>> layer_name("net.Net/torch.nn.modules.container.Sequential_s/net.B_0/torch.nn.modules.conv.Conv2d_c1;1")
    's.0.c1'
    """
    path = re.sub(r";\d*$", "", tensor).rpartition(";;")[2].split("/")[1:]
    return ".".join(part.rpartition(".")[2].partition("_")[2] for part in path) or tensor


def _leave_out(tool: Any, skip: set[str]) -> None:
    from ai_edge_quantizer import qtyping, quantizer

    for name in sorted(skip):
        tool.update_quantization_recipe(
            re.escape(name),
            qtyping.TFLOperationName.ALL_SUPPORTED,
            algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE,
        )


def _run(tool: Any, statistics: dict[str, Any] | None = None) -> bytes:
    result = tool.quantize(statistics, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _interpreter(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return interpreter


def _activations(interpreter: Any, samples: np.ndarray, wanted: set[str]) -> Iterator[dict[str, np.ndarray]]:
    """Run the samples one by one and yield the tensors that are wanted."""
    indices = {
        details["name"]: details["index"] for details in interpreter.get_tensor_details() if details["name"] in wanted
    }
    position = interpreter.get_input_details()[0]["index"]
    for sample in samples:
        interpreter.set_tensor(position, sample[np.newaxis])
        interpreter.invoke()
        yield {name: interpreter.get_tensor(index) for name, index in indices.items()}
