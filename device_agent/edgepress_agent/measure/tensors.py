"""What is fed to a model and what is made of its outputs. Runs in the child: the agent itself imports no numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Golden, Manifest, TensorSpec
from safetensors import safe_open

from edgepress_agent.runtimes import Model, Unsupported

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

_SEED = 0


@dataclass(frozen=True)
class Bound:
    """A loaded model held against its manifest: tensors go in and out in the manifest's order.

    `batch` is the first dimension of what is fed at a time.
    """

    model: Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feed_order: tuple[int, ...]
    take_order: tuple[int, ...]
    batch: int

    def arrange(self, arrays: Sequence[Array]) -> list[Array]:
        """Put arrays from the manifest's order into the file's, in the stored types, ready to run."""
        stored = [to_stored(array, spec) for array, spec in zip(arrays, self.inputs, strict=True)]
        return [stored[position] for position in self.feed_order]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once, from and to the manifest's order."""
        return self.restore(self.model.run(self.arrange(arrays)))

    def restore(self, results: Sequence[Array]) -> list[Array]:
        """Put outputs from the file's order into the manifest's."""
        return [results[position] for position in self.take_order]


def bind(model: Model, manifest: Manifest, batch: int) -> Bound:
    """Hold the file against its manifest.

    Tensors are matched by name where the names agree, else by position; types and shapes must agree either way.

    Raises:
        Rejected: the file is not what the manifest says.
        Unsupported: the file's batch is fixed at another number than `batch`, and cannot be changed.
    """
    feed = _match(manifest.inputs, model.inputs, "input")
    take = _match(manifest.outputs, model.outputs, "output")
    inputs = tuple(model.inputs[feed.index(i)] for i in range(len(feed)))
    outputs = tuple(model.outputs[i] for i in take)
    return Bound(model, inputs, outputs, feed, take, _batch(inputs, batch, resizable=model.resizable))


def _match(said: Sequence[TensorSpec], found: Sequence[TensorSpec], what: str) -> tuple[int, ...]:
    """Return, for inputs, the manifest position of each of the file's; for outputs, the file position of each said."""
    if len(said) != len(found):
        raise Rejected(f"the manifest names {len(said)} {what}s, the file has {len(found)}")
    names_said, names_found = [spec.name for spec in said], [spec.name for spec in found]
    by_name = sorted(names_said) == sorted(names_found)
    file_position = [names_found.index(name) if by_name else i for i, name in enumerate(names_said)]
    for spec, position in zip(said, file_position, strict=True):
        other = found[position]
        if spec.dtype != other.dtype or not _fits(spec.shape, other.shape):
            raise Rejected(
                f"{what} {spec.name!r}: the manifest says {spec.dtype} {_shape(spec)},"
                f" the file {other.dtype} {_shape(other)}"
            )
    if what == "output":
        return tuple(file_position)
    return tuple(file_position.index(i) for i in range(len(found)))


def _fits(said: tuple[int | None, ...], found: tuple[int | None, ...]) -> bool:
    return len(said) == len(found) and all(a is None or b is None or a == b for a, b in zip(said, found, strict=True))


def _shape(spec: TensorSpec) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in spec.shape) + ")"


def _batch(inputs: tuple[TensorSpec, ...], wanted: int, *, resizable: bool) -> int:
    """Batch that the file takes: what is wanted where it is free, else what the file fixes."""
    shape = inputs[0].shape
    fixed = shape[0] if len(shape) > 1 else None
    if fixed is None or fixed == wanted or (resizable and fixed == 1):
        return wanted
    if wanted == 1:
        return fixed
    raise Unsupported(f"the file's batch is fixed at {fixed}; batch {wanted} was asked for")


def shape_of(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """Concrete shape of one input at `batch`: a free first dimension is the batch, any other free one is 1."""
    sizes = [size if size is not None else (batch if i == 0 else 1) for i, size in enumerate(spec.shape)]
    if len(sizes) > 1 and sizes[0] == 1:
        sizes[0] = batch
    return tuple(sizes)


def to_stored(array: Array, spec: TensorSpec) -> Array:
    """Bring reals into the type that a model stores; arrays of that type pass untouched.

    Raises:
        Rejected: reals came for integers whose scale nobody knows.
    """
    dtype = np.dtype(spec.dtype)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if spec.quantization is not None and array.dtype.kind == "f":
        steps = np.rint(array / spec.quantization.scale) + spec.quantization.zero_point
        limits = np.iinfo(dtype)
        return np.ascontiguousarray(np.clip(steps, limits.min, limits.max).astype(dtype))
    if array.dtype.kind == "f" and dtype.kind != "f":
        raise Rejected(f"input {spec.name!r} takes {spec.dtype} without a scale, and {array.dtype} came")
    return np.ascontiguousarray(array.astype(dtype))


def to_real(array: Array, spec: TensorSpec) -> Array:
    """Bring a stored output back into reals."""
    real = array.astype(np.float64)
    if spec.quantization is None:
        return real
    return (real - spec.quantization.zero_point) * spec.quantization.scale


def random_inputs(bound: Bound) -> list[Array]:
    """Make seeded inputs, in the manifest's order, for a model that came with none.

    Reals are standard normal, quantized integers fill their range, others are 0 or 1: safe as indexes too.
    """
    random = np.random.default_rng(_SEED)
    return [_random(random, spec, shape_of(spec, bound.batch)) for spec in bound.inputs]


def _random(random: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu" and spec.quantization is not None:
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return random.integers(0, 2, shape).astype(dtype)


class Samples:
    """Tensors of a safetensors file, read a slice at a time so that a large file does not fill a small board.

    Raises:
        Rejected: it is no such file, or lacks a tensor.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        try:
            opened: Any = safe_open(str(path), framework="numpy")
            present = set(opened.keys())
        except Exception as error:
            raise Rejected(f"{path.name}: not a safetensors file ({error})") from error
        missing = [name for name in names if name not in present]
        if missing:
            raise Rejected(f"{path.name}: tensor {missing[0]!r} is missing")
        self._slices = [opened.get_slice(name) for name in names]
        counts = {int(each.get_shape()[0]) if each.get_shape() else 0 for each in self._slices}
        if len(counts) != 1 or 0 in counts:
            raise Rejected(f"{path.name}: its tensors hold different numbers of samples, or none")
        self.count = counts.pop()

    def take(self, start: int, stop: int) -> list[Array]:
        """Read samples `start` to `stop` of each tensor."""
        return [each[start:stop] for each in self._slices]

    def batches(self, batch: int) -> Iterator[tuple[list[Array], int]]:
        """Yield batches of exactly `batch`, the last one filled up with its last sample, and how many are real."""
        for start in range(0, self.count, batch):
            arrays = self.take(start, min(start + batch, self.count))
            real = len(arrays[0])
            yield [fill(array, batch) for array in arrays], real


def fill(array: Array, batch: int) -> Array:
    """Repeat the last sample until there are `batch`."""
    lacking = batch - len(array)
    return array if lacking <= 0 else np.concatenate([array, np.repeat(array[-1:], lacking, axis=0)])


def golden_names(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Names of the input and output tensors in a golden file."""
    return [f"input.{i}" for i in range(len(manifest.inputs))], [f"output.{i}" for i in range(len(manifest.outputs))]


def check_golden(
    bound: Bound, manifest: Manifest, golden: Golden, path: Path, first: Sequence[Array]
) -> tuple[float, str]:
    """Run the golden inputs and hold the outputs against the host's, as `Golden` defines it.

    `first` is what the first batch of them gave when the model was opened: a model that keeps a state must see
    each sample once, in the host's order. Returns the largest error over all outputs, and the line that says
    what is wrong, empty where nothing is.
    """
    input_names, output_names = golden_names(manifest)
    samples = Samples(path, [*input_names, *output_names])
    split = len(input_names)
    errors, peaks = np.zeros(len(output_names)), np.zeros(len(output_names))
    for number, (arrays, real) in enumerate(samples.batches(bound.batch)):
        results = bound.run(arrays[:split]) if number else first
        for i, (ours, theirs) in enumerate(zip(results, arrays[split:], strict=True)):
            # NaN wins over every number here.
            error, peak = compare(ours[:real], theirs[:real])
            errors[i], peaks[i] = np.maximum(errors[i], error), np.maximum(peaks[i], peak)
    limits = golden.atol + golden.rtol * peaks
    # Written so that NaN counts as wrong.
    wrong = next((i for i in range(len(errors)) if not errors[i] <= limits[i]), None)
    line = ""
    if wrong is not None:
        line = (
            f"golden vectors: {output_names[wrong]} is off by {errors[wrong]:.4g}, at most {limits[wrong]:.4g} is right"
        )
    return float(errors.max()), line


def compare(ours: Array, theirs: Array) -> tuple[float, float]:
    """Return max|ours - theirs| and max|theirs|."""
    if ours.shape != theirs.shape:
        raise Rejected(f"golden vectors: the output has shape {ours.shape}, the host's {theirs.shape}")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    # Infinities that agree differ by nothing.
    difference = np.where(a == b, 0.0, np.abs(a - b))
    return float(difference.max()), float(np.abs(b).max())


def evaluate(bound: Bound, metric: str, path: Path) -> tuple[float, int]:
    """Compute a metric over an evaluation set; returns it and the number of samples.

    Raises:
        Rejected: the file does not fit, or the metric is not known here.
        Unsupported: the model has several inputs, where the set feeds one.
    """
    if metric not in METRICS:
        raise Rejected(f"metric {metric!r} cannot be computed on a device: only {', '.join(sorted(METRICS))}")
    if len(bound.inputs) != 1:
        raise Unsupported(f"an evaluation set feeds one input, the model has {len(bound.inputs)}")
    samples = Samples(path, ["x", "y"])
    score, total = METRICS[metric], 0.0
    for (x, y), real in samples.batches(bound.batch):
        outputs = to_real(bound.run([x])[0], bound.outputs[0])
        total += score(outputs[:real], y[:real])
    return total / samples.count, samples.count


def _top1(outputs: Array, labels: Array) -> float:
    return float((outputs.reshape(len(outputs), -1).argmax(axis=1) == labels.reshape(-1)).sum())


def _neg_mse(outputs: Array, targets: Array) -> float:
    difference = (outputs - targets.reshape(outputs.shape)).reshape(len(outputs), -1)
    return -float(np.square(difference).mean(axis=1).sum())


METRICS: dict[str, Callable[[Array, Array], float]] = {"top1": _top1, "neg_mse": _neg_mse}
"""Sum over a batch's samples of a score that is higher where the model is better."""
