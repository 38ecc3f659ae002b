"""ONNX Runtime, on its CPU provider."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepress_protocol.manifest import TensorSpec
from edgepress_protocol.measurement import Runtime

from edgepress_agent.runtimes import Unsupported, distribution

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

# A Jetson brings its own build, under a name of its own.
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
_UNKNOWN = ("is not a registered function/op", "NOT_IMPLEMENTED", "NotImplemented", "only *guarantees* support")


def available() -> Runtime | None:
    """Return the installed ONNX Runtime."""
    return distribution("onnx", "onnxruntime", _PACKAGES)


def prepare() -> None:
    """Import ONNX Runtime."""
    importlib.import_module("onnxruntime")


def load(path: Path, threads: int) -> OnnxModel:
    """Load an ONNX file.

    Raises:
        Unsupported: it has an operator, an opset or a type that this ONNX Runtime does not know.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Spinning threads fight for the cores of a small board: p99 / p50 was 30 with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if any(sign in f"{type(error).__name__} {error}" for sign in _UNKNOWN):
            raise Unsupported(f"ONNX Runtime {onnxruntime.__version__}: {error}") from error
        raise
    return OnnxModel(session)


class OnnxModel:
    """A session and the names of its tensors."""

    resizable = False

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_spec(each) for each in session.get_inputs())
        self.outputs = tuple(_spec(each) for each in session.get_outputs())
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once."""
        feeds = dict(zip(self._input_names, inputs, strict=True))
        results: list[Array] = self._session.run(self._output_names, feeds)
        return results


def _spec(node: Any) -> TensorSpec:
    if node.type not in _TYPES:
        raise Unsupported(f"tensor {node.name!r} has type {node.type}: numbers and booleans can be fed")
    shape = tuple(each if isinstance(each, int) and each >= 0 else None for each in node.shape)
    return TensorSpec(node.name, _TYPES[node.type], shape)
