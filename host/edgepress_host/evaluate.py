"""Accuracy of an exported file, computed by the runtime that will run it, never by the torch module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from edgepress_protocol.errors import Rejected, UsageError
from edgepress_protocol.manifest import TensorSpec

from edgepress_host import exporters
from edgepress_host.press.data import Samples
from edgepress_host.press.loading import call_user, resolve_callable
from edgepress_host.press.quiet import quiet

BATCH = 64

Metric = Callable[[np.ndarray, np.ndarray], float]


class Runner(Protocol):
    """A loaded file; `batch` is how many samples it takes at once."""

    batch: int

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for one batch, shape (batch, …), as the file stores them."""


def top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose highest score is the label's; outputs (N, classes), labels (N,).

    >>> top1(np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([1, 1]))
    0.5
    """
    return float((outputs.argmax(axis=-1).reshape(labels.shape) == labels).mean())


def neg_mse(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared error, negated so that higher is better; outputs and labels (N, …)."""
    difference = outputs.astype(np.float64) - labels.reshape(outputs.shape)
    return float(-np.mean(difference * difference))


BUILT_IN: dict[str, Metric] = {"top1": top1, "neg_mse": neg_mse}


def metric(name: str) -> Metric:
    """Find a metric: a built-in one, or `module:attr` of `(outputs, labels) -> float`. Raises UsageError."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        raise UsageError(f"metric: expected one of {', '.join(BUILT_IN)} or 'module:attr', got {name!r}")
    return resolve_callable(name, key="metric")


def accuracy(format_: str, content: bytes, samples: Samples, score: Metric) -> float:
    """Run every sample through the file and score the first output."""
    outputs = np.concatenate([outputs[0] for outputs in predict(format_, content, samples.x)])
    value: float = call_user(lambda: float(score(outputs, samples.y)), key="metric")
    if not np.isfinite(value):
        raise Rejected(f"the metric of these answers is {value}, and no finite number")
    return value


def predict(format_: str, content: bytes, x: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Yield real-valued outputs batch by batch; integer inputs and outputs go through scale and zero point."""
    inputs, outputs = exporters.get(format_).tensors(content)
    check_input(inputs, x)
    runner = open_runner(format_, content)
    for start in range(0, len(x), runner.batch):
        part = x[start : start + runner.batch]
        stored = quantized(inputs[0], pad(part, runner.batch if fixed(inputs[0]) else len(part)))
        yield [dequantized(spec, output)[: len(part)] for spec, output in zip(outputs, runner.run(stored), strict=True)]


def open_runner(format_: str, content: bytes | Path, *, plain_kernels: bool = False) -> Runner:
    """Load a file, or its bytes, with one thread.

    `plain_kernels` runs it without the runtime's optimisations of graph or kernels.
    """
    runners: dict[str, Callable[..., Runner]] = {"onnx": OnnxRunner, "tflite": TfliteRunner}
    return runners[format_](content, plain_kernels=plain_kernels)


class OnnxRunner:
    """A file in ONNX Runtime, on the CPU."""

    def __init__(self, content: bytes | Path, *, plain_kernels: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        if plain_kernels:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = str(content) if isinstance(content, Path) else content
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        first = self._session.get_inputs()[0]
        self._input = first.name
        self.batch = first.shape[0] if isinstance(first.shape[0], int) else BATCH

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of one batch."""
        return list(self._session.run(None, {self._input: x}))


class TfliteRunner:
    """A file in LiteRT, on the CPU."""

    def __init__(self, content: bytes | Path, *, plain_kernels: bool = False) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain_kernels else OpResolverType.AUTO
        with quiet():
            source = {"model_path": str(content)} if isinstance(content, Path) else {"model_content": content}
            self._interpreter: Any = Interpreter(**source, num_threads=1, experimental_op_resolver_type=kind)
            self._interpreter.allocate_tensors()
        first = self._interpreter.get_input_details()[0]
        self._input = first["index"]
        self._outputs = [details["index"] for details in self._interpreter.get_output_details()]
        self.batch = int(first["shape"][0])

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of one batch."""
        self._interpreter.set_tensor(self._input, x)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


def check_input(inputs: tuple[TensorSpec, ...], x: np.ndarray) -> None:
    """Refuse data that does not fit the model's one input. Raises UsageError."""
    if len(inputs) != 1:
        raise UsageError(f"the model has {len(inputs)} inputs; edgepress compresses models with one")
    wanted = inputs[0].shape[1:]
    if len(wanted) != x.ndim - 1 or any(w not in (None, g) for w, g in zip(wanted, x.shape[1:], strict=True)):
        raise UsageError(f"the model takes samples of shape {wanted}, the data has {x.shape[1:]}")


def fixed(spec: TensorSpec) -> bool:
    """Tell whether the batch is fixed in the file."""
    return bool(spec.shape) and spec.shape[0] is not None


def pad(x: np.ndarray, count: int) -> np.ndarray:
    """Repeat the last sample until there are `count`, for a file with a fixed batch."""
    missing = count - len(x)
    return x if missing <= 0 else np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])


def quantized(spec: TensorSpec, x: np.ndarray) -> np.ndarray:
    """Real numbers to what the input stores: round(x / scale) + zero_point, clipped to the type."""
    kind = np.dtype(spec.dtype)
    if spec.quantization is None:
        return np.ascontiguousarray(x, dtype=kind)
    limits = np.iinfo(kind)
    steps = np.round(x / spec.quantization.scale) + spec.quantization.zero_point
    return np.clip(steps, limits.min, limits.max).astype(kind)


def dequantized(spec: TensorSpec, stored: np.ndarray) -> np.ndarray:
    """Turn what an output stores into real numbers: scale * (stored - zero_point)."""
    if spec.quantization is None:
        return stored
    return np.float32(spec.quantization.scale) * (stored.astype(np.float32) - spec.quantization.zero_point)
