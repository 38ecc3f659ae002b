"""A ready model file without a recipe: tensors read by its own runtime, golden vectors computed by it here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from edgepress_protocol.errors import UsageError
from edgepress_protocol.manifest import Quantization, TensorSpec

from edgepress_host.client.artifacts import Artifact, EvaluationFile, GoldenFile, digest
from edgepress_host.press.quiet import quiet
from edgepress_host.text import one_line

FORMATS = {".onnx": "onnx", ".tflite": "tflite"}
GOLDEN_SAMPLES = 8
FLOAT_RTOL = 0.02
"""Share of the largest output by which another processor's kernels may differ, quantized ones among them."""
INTEGER_ATOL = 3.0
"""The same for integer outputs, in steps of the stored type."""
_SEED = 0


class Loaded(Protocol):
    """A model in its runtime."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Run one sample; arrays in the order of `inputs`."""


def read(path: Path, work_dir: Path, evaluation: EvaluationFile | None = None) -> Artifact:
    """Read a ready file, and write golden vectors for it into `work_dir`: of seeded random input, or of `evaluation`.

    Raises:
        UsageError: the file is not there, is no model, or has inputs that cannot be made up.
    """
    from safetensors.numpy import save_file

    format_ = FORMATS.get(path.suffix)
    if format_ is None and not path.exists():
        raise UsageError(f"{path}: no such folder or file")
    if format_ is None:
        raise UsageError(f"{path}: expected a file that ends in {' or '.join(FORMATS)}")
    sha256 = digest(path)
    model = _load(path, format_)
    samples = _given(path, model, evaluation) if evaluation else [_random(path, spec) for spec in model.inputs]
    tensors = {f"input.{index}": stacked for index, stacked in enumerate(samples)}
    runs = [_run(path, model, [stacked[at : at + 1] for stacked in samples]) for at in range(len(samples[0]))]
    for index in range(len(model.outputs)):
        tensors[f"output.{index}"] = np.concatenate([outputs[index] for outputs in runs])
    golden = work_dir / f"{sha256}.golden.safetensors"
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, golden)
    except OSError as error:
        raise UsageError(f"{work_dir}: golden vectors cannot be written there ({error.strerror})") from error
    whole = all(np.dtype(spec.dtype).kind in "iu" for spec in model.outputs)
    return Artifact(
        variant=path.stem,
        format=format_,
        path=path,
        inputs=model.inputs,
        outputs=model.outputs,
        golden=GoldenFile(golden, INTEGER_ATOL if whole else 1e-5, 0.0 if whole else FLOAT_RTOL),
        sha256=sha256,
        stats={"source": path.name, "file_bytes": path.stat().st_size},
    )


def _load(path: Path, format_: str) -> Loaded:
    try:
        return _Onnx(path) if format_ == "onnx" else _Tflite(path)
    except ModuleNotFoundError as error:
        extra = {"onnx": "onnx", "tflite": "litert"}[format_]
        raise UsageError(f"{path}: {error.name} is not installed: pip install 'edgepress[{extra}]'") from error
    except Exception as error:  # a runtime raises its own kinds, which it does not name
        raise UsageError(f"{path}: its runtime cannot load it: {one_line(error)}") from error


def _run(path: Path, model: Loaded, arrays: list[np.ndarray]) -> list[np.ndarray]:
    try:
        outputs = model.run(arrays)
    except Exception as error:  # as above
        raise UsageError(f"{path}: its runtime cannot run it on made-up input: {one_line(error)}") from error
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in outputs):
        raise UsageError(f"{path}: its outputs are not finite on made-up input; pass real samples with --eval")
    return outputs


def _given(path: Path, model: Loaded, evaluation: EvaluationFile) -> list[np.ndarray]:
    """Return the first samples of an evaluation set, as the model's one input stores them."""
    from safetensors.numpy import load_file

    if len(model.inputs) != 1:
        raise UsageError(f"{path}: has {len(model.inputs)} inputs; an evaluation set feeds one")
    spec = model.inputs[0]
    x = load_file(evaluation.path)["x"][:GOLDEN_SAMPLES]
    if spec.quantization is None:
        return [x.astype(spec.dtype)]
    limits = np.iinfo(spec.dtype)
    steps = np.round(x / spec.quantization.scale) + spec.quantization.zero_point
    return [np.clip(steps, limits.min, limits.max).astype(spec.dtype)]


def _random(path: Path, spec: TensorSpec) -> np.ndarray:
    if any(size is None for size in spec.shape[1:]):
        raise UsageError(
            f"{path}: input {spec.name!r} has a free dimension besides the batch; export it with fixed sizes"
        )
    if spec.shape and spec.shape[0] not in (None, 1):
        raise UsageError(f"{path}: input {spec.name!r} takes a batch of {spec.shape[0]}; export it with a batch of 1")
    generator = np.random.default_rng(_SEED)
    shape = (GOLDEN_SAMPLES, *(size or 1 for size in spec.shape[1:]))
    kind = np.dtype(spec.dtype)
    if kind.kind == "f":
        return generator.standard_normal(shape).astype(kind)
    if kind.kind in "iu":
        # Wide integers are indexes as a rule, and 0 and 1 are in every table.
        limits = np.iinfo(kind)
        low, high = (limits.min, limits.max) if kind.itemsize == 1 else (0, 1)
        return generator.integers(low, high, shape, dtype=kind, endpoint=True)
    if kind.kind == "b":
        return generator.integers(0, 2, shape).astype(kind)
    raise UsageError(f"{path}: input {spec.name!r} is of type {spec.dtype}, which cannot be made up")


class _Onnx:
    """A file in ONNX Runtime, with one thread."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(_onnx_spec(tensor) for tensor in self._session.get_inputs())
        self.outputs = tuple(_onnx_spec(tensor) for tensor in self._session.get_outputs())

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        feed = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        return list(self._session.run(None, feed))


def _onnx_spec(tensor: Any) -> TensorSpec:
    inner = tensor.type.removeprefix("tensor(").removesuffix(")")
    named = {"float": "float32", "double": "float64"}.get(inner, inner)
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=named, shape=shape)


class _Tflite:
    """A file in LiteRT, with one thread."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with quiet():
            self._interpreter: Any = Interpreter(model_path=str(path), num_threads=1)
            self._interpreter.allocate_tensors()
        self._in, self._out = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.inputs = tuple(_tflite_spec(details) for details in self._in)
        self.outputs = tuple(_tflite_spec(details) for details in self._out)

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        for details, array in zip(self._in, arrays, strict=True):
            self._interpreter.set_tensor(details["index"], array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(details["index"]) for details in self._out]


def _tflite_spec(details: Any) -> TensorSpec:
    scale, zero_point = details["quantization"]
    return TensorSpec(
        name=details["name"],
        dtype=np.dtype(details["dtype"]).name,
        shape=tuple(int(size) for size in details["shape"]),
        quantization=Quantization(float(scale), int(zero_point)) if scale else None,
    )
