"""Ranges of a TFLite file's activations: our own, in the form that AI Edge Quantizer takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgepress_host.techniques.quantize.plan import ActivationPlan
from edgepress_host.techniques.quantize.ranges import ranges


def statistics(tool: Any, content: bytes, activations: ActivationPlan, *, even: bool) -> dict[str, Any]:
    """Ranges of our own, in the form of those that the tool finds."""
    samples = activations.samples
    interpreter = _interpreter(content)
    key, signature = next(iter(interpreter.get_signature_list().items()))
    # One sample through the tool's own calibration tells which tensors it wants ranges of, and in what shape.
    wanted: dict[str, Any] = tool.calibrate({key: [{signature["inputs"][0]: samples[:1]}]}, num_threads=1)
    borders = (*interpreter.get_input_details(), *interpreter.get_output_details())
    found = ranges(
        lambda: _activations(interpreter, samples, set(wanted)),
        activations.method,
        percentile=activations.percentile,
        whole={details["name"] for details in borders},
        symmetric=even,
        levels=activations.levels,
    )
    for name, found_by_tool in wanted.items():
        if name in found:
            low, high = found[name]
            found_by_tool["min"] = np.full_like(found_by_tool["min"], low)
            found_by_tool["max"] = np.full_like(found_by_tool["max"], high)
    return wanted


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
