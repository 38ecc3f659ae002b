"""What a device needs to check a file by itself: golden vectors, and a labelled evaluation set."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import safetensors.numpy

from edgepress_host import exporters
from edgepress_host.evaluate import fixed, open_runner, pad, quantized
from edgepress_host.press.data import Samples
from edgepress_host.press.store import disk, write_atomically
from edgepress_host.technique import StepFailed
from edgepress_host.variants import EvaluationFile, GoldenFile

GOLDEN_SAMPLES = 8
EVALUATION_SAMPLES = 1000
RTOL = {"float": 0.01, "integer": 0.03}
"""Share of the largest output, by the kind of weights: above what another order of sums changes, or, with
integers, a rounding step more or less in some layers; below what flips clear decisions."""

_MARGIN = 4
_WIDEST = 0.05
"""Share of the largest output beyond which the margin does not reach."""


def write_golden(folder: Path, name: str, format_: str, content: bytes, x: np.ndarray) -> GoldenFile:
    """Write inputs and what this host's runtime makes of them. Raises Unavailable.

    The tolerance starts from a measurement: how far two sets of kernels of the same runtime (optimised and plain)
    disagree on this very file. Other machines differ from this one about as much.
    """
    specs, outputs = exporters.get(format_).tensors(content)
    samples = quantized(specs[0], x[:GOLDEN_SAMPLES])
    usual = _outputs(format_, content, samples, plain_kernels=False)
    plain = _outputs(format_, content, samples, plain_kernels=True)
    apart = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(usual, plain, strict=True))
    peak = max(float(np.abs(values.astype(np.float64)).max()) for values in usual)
    if not math.isfinite(apart) or not math.isfinite(peak):
        raise StepFailed("the file's outputs hold NaN or infinity")
    step = 1.0 if any(spec.quantization is not None for spec in outputs) else 0.0
    integer = any(weight.dtype in ("int8", "uint8") for weight in exporters.get(format_).weights(content))
    kind = "integer" if integer else "float"
    vectors = {"input.0": samples} | {f"output.{index}": values for index, values in enumerate(usual)}
    file = f"golden/{name}.{format_}.safetensors"
    with disk(folder / file):
        (folder / "golden").mkdir(exist_ok=True)
    whole = {key: np.ascontiguousarray(values) for key, values in vectors.items()}
    write_atomically(folder / file, safetensors.numpy.save(whole))
    return GoldenFile(file=file, samples=len(samples), atol=step + tolerated(apart, peak), rtol=RTOL[kind])


def tolerated(apart: float, peak: float) -> float:
    """Return what a right runtime may differ by: a margin over what was seen, but no share in which any answer passes.

    >>> tolerated(0.1, 14.0), tolerated(0.5, 14.0), tolerated(1.0, 14.0)
    (0.4, 0.7, 1.0)
    """
    return max(apart, min(_MARGIN * apart, _WIDEST * peak))


def write_evaluation(folder: Path, validate: Samples) -> EvaluationFile:
    """Write the first samples of the validate split. Raises Unavailable."""
    chosen = validate.first(EVALUATION_SAMPLES)
    file = "evaluation.safetensors"
    arrays = {"x": np.ascontiguousarray(chosen.x), "y": np.ascontiguousarray(chosen.y)}
    write_atomically(folder / file, safetensors.numpy.save(arrays))
    return EvaluationFile(file=file, samples=len(chosen.x))


def _outputs(format_: str, content: bytes, samples: np.ndarray, *, plain_kernels: bool) -> list[np.ndarray]:
    """Return outputs as the file stores them, one array of (N, …) per output."""
    runner = open_runner(format_, content, plain_kernels=plain_kernels)
    fixed_batch = fixed(exporters.get(format_).tensors(content)[0][0])
    parts = []
    for start in range(0, len(samples), runner.batch):
        batch = samples[start : start + runner.batch]
        full = pad(batch, runner.batch) if fixed_batch else batch
        parts.append([output[: len(batch)] for output in runner.run(full)])
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
