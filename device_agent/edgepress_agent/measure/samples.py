"""Samples in files, and what a model makes of them: golden vectors, and metrics over an evaluation set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Golden, Manifest
from safetensors import safe_open

from edgepress_agent.measure.steps import Steps
from edgepress_agent.measure.tensors import Bound, to_real

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array


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
    """Names of the input and output tensors in a golden file; it holds no states."""
    states = {carried.input for carried in manifest.carried}
    inputs = [f"input.{i}" for i, spec in enumerate(manifest.inputs) if spec.name not in states]
    return inputs, [f"output.{i}" for i in range(len(manifest.outputs))]


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
    split, steps = len(input_names), Steps(bound)
    steps.follow(first)
    errors, peaks = np.zeros(len(output_names)), np.zeros(len(output_names))
    for number, (arrays, real) in enumerate(samples.batches(bound.batch)):
        results = steps.run(arrays[:split]) if number else first
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
    """Compute a metric over an evaluation set, of the first output; returns it and the number of samples.

    Raises:
        Rejected: the file does not fit, or the metric is not known here.
    """
    if metric not in METRICS:
        raise Rejected(f"metric {metric!r} cannot be computed on a device: only {', '.join(sorted(METRICS))}")
    samples = Samples(path, [*evaluation_names(bound), "y"])
    steps, score, total = Steps(bound), METRICS[metric], 0.0
    for (*x, y), real in samples.batches(bound.batch):
        if bound.stateful:
            steps.restart()
        outputs = to_real(_last_step(steps, bound, x)[0], bound.outputs[0])
        total += score(outputs[:real], y[:real])
    return total / samples.count, samples.count


def evaluation_names(bound: Bound) -> list[str]:
    """Names of the input tensors in an evaluation set."""
    return ["x"] if len(bound.free) == 1 else [f"x.{position}" for position in bound.free]


def _last_step(steps: Steps, bound: Bound, x: Sequence[Array]) -> list[Array]:
    """Run a sample, or each step of one that is a sequence to a model that takes steps; returns what came last."""
    is_sequence = bound.stateful and x[0].ndim == len(bound.inputs[bound.free[0]].shape) + 1
    if not is_sequence:
        return steps.run(x)
    lengths = {each.shape[1] for each in x}
    if len(lengths) != 1 or 0 in lengths:
        raise Rejected(f"evaluation set: a sample's inputs have {sorted(lengths)} steps; expected as many in each")
    outputs: list[Array] = []
    for step in range(lengths.pop()):
        outputs = steps.run([each[:, step] for each in x])
    return outputs


def _top1(outputs: Array, labels: Array) -> float:
    return float((outputs.reshape(len(outputs), -1).argmax(axis=1) == labels.reshape(-1)).sum())


def _neg_mse(outputs: Array, targets: Array) -> float:
    difference = (outputs - targets.reshape(outputs.shape)).reshape(len(outputs), -1)
    return -float(np.square(difference).mean(axis=1).sum())


METRICS: dict[str, Callable[[Array, Array], float]] = {"top1": _top1, "neg_mse": _neg_mse}
"""Sum over a batch's samples of a score that is higher where the model is better."""
