"""TFLite: Google's LiteRT (ai-edge-litert) or, on older boards, tflite-runtime, whichever is installed.

Both run float models through XNNPACK by default.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepress_protocol.manifest import Quantization, TensorSpec
from edgepress_protocol.measurement import Runtime

from edgepress_agent.runtimes import Unsupported, distribution

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

_RESOURCE_OPERATOR = "VAR_HANDLE"
_STATEFUL_OPERATORS = {
    *(_RESOURCE_OPERATOR, "SVDF", "RNN", "LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM"),
    *("BIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM"),
}
_UNKNOWN = ("unresolved custom op", "Didn't find op for builtin opcode", "Select TensorFlow op", "flex")


def available() -> Runtime | None:
    """Return ai-edge-litert where it is installed, else tflite-runtime."""
    return distribution("tflite", "ai_edge_litert", ("ai-edge-litert",)) or distribution(
        "tflite", "tflite_runtime", ("tflite-runtime",)
    )


def prepare() -> None:
    """Import the interpreter."""
    _interpreter_class()


def load(path: Path, threads: int) -> TfliteModel:
    """Load a TFLite file.

    Raises:
        Unsupported: it has an operator that this runtime does not know.
    """

    def start() -> Any:
        interpreter = _interpreter_class()(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
        return interpreter

    try:
        return TfliteModel(start)
    except (RuntimeError, ValueError) as error:
        if any(sign in str(error) for sign in _UNKNOWN):
            raise Unsupported(f"TFLite: {error}") from error
        raise


def _interpreter_class() -> Any:
    runtime = available()
    package = "ai_edge_litert" if runtime is not None and runtime.name == "ai-edge-litert" else "tflite_runtime"
    return importlib.import_module(f"{package}.interpreter").Interpreter


class TfliteModel:
    """An interpreter whose tensors are allocated, and allocated anew when another batch comes."""

    resizable = True

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._interpreter = start()
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.inputs = tuple(_spec(each) for each in inputs)
        self.outputs = tuple(_spec(each) for each in outputs)
        self._input_indexes = [int(each["index"]) for each in inputs]
        self._output_indexes = [int(each["index"]) for each in outputs]
        # Nothing public tells which tensors are variables; the list of operators is the same in all runtimes so far.
        operators = {str(each["op_name"]) for each in self._interpreter._get_ops_details()}  # noqa: SLF001
        self.stateful = not operators.isdisjoint(_STATEFUL_OPERATORS)
        self._has_resources = _RESOURCE_OPERATOR in operators
        self._own_shapes = [tuple(int(size) for size in each["shape"]) for each in inputs]
        self._shapes = self._own_shapes

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once; an input of another shape than the last is resized first."""
        self._feed(inputs)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._output_indexes]

    def repeat(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """Return `invoke` alone, as benchmark_model times it: the interpreter never overwrites a graph's inputs."""
        self._feed(inputs)
        invoke: Callable[[], object] = self._interpreter.invoke
        return invoke

    def reset(self) -> None:
        """Set its variables back; those that are resources only a new interpreter has afresh."""
        if self._has_resources:
            self._interpreter, self._shapes = self._start(), self._own_shapes
        else:
            self._interpreter.reset_all_variables()

    def _feed(self, inputs: Sequence[Array]) -> None:
        shapes = [each.shape for each in inputs]
        if shapes != self._shapes:
            self._resize(shapes)
        for index, value in zip(self._input_indexes, inputs, strict=True):
            self._interpreter.set_tensor(index, value)

    def _resize(self, shapes: list[tuple[int, ...]]) -> None:
        try:
            for index, shape in zip(self._input_indexes, shapes, strict=True):
                self._interpreter.resize_tensor_input(index, shape)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            # The interpreter keeps the shapes that it could not take, and tflite-runtime crashes on being set back.
            self._interpreter, self._shapes = self._start(), self._own_shapes
            raise Unsupported(f"TFLite: the file cannot take inputs of shape {shapes}: {error}") from error
        self._shapes = shapes


def _spec(detail: dict[str, Any]) -> TensorSpec:
    import numpy as np

    shape = tuple(int(size) if size >= 0 else None for size in detail.get("shape_signature", detail["shape"]))
    scale, zero_point = detail["quantization"]
    quantization = Quantization(float(scale), int(zero_point)) if scale else None
    return TensorSpec(str(detail["name"]), np.dtype(detail["dtype"]).name, shape, quantization)
