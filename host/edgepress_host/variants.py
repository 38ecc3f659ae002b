"""`variants.json`: what a compress run made, what it measured, and how each variant came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from edgepress_protocol.errors import UsageError
from edgepress_protocol.manifest import TensorSpec
from edgepress_protocol.printing import indented

from edgepress_host.choice.budget import Budget
from edgepress_host.press.store import write_atomically

FILE_NAME = "variants.json"
SCHEMA = 1

Verdict = Literal["ok", "no-op", "grew", "sparsity lost", "accuracy guard", "failed"]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about one file; `macs` per sample. A number that could not be had is None."""

    accuracy: float
    params: int
    nonzero_params: int
    macs: int | None
    file_bytes: int
    wire_bytes: int


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one step did. `measured` is None where the step failed."""

    technique: str
    options: dict[str, Any]
    verdict: Verdict
    reason: str
    seconds: float
    measured: Measured | None = None
    notes: tuple[str, ...] = ()


class GoldenFile(msgspec.Struct, frozen=True, kw_only=True):
    """Golden vectors beside a file: `input.<i>` and `output.<i>` as the host's runtime computed them."""

    file: str
    samples: int
    atol: float
    rtol: float


class VariantResult(msgspec.Struct, frozen=True, kw_only=True):
    """One variant in one format. `file` and all that was measured on it are None where nothing was kept.

    `kept_steps` tells how many of the steps are in the file: fewer than all after a broken accuracy guard.
    """

    name: str
    format: str
    verdict: Verdict
    reason: str
    steps: tuple[StepResult, ...]
    kept_steps: int
    seconds: float
    file: str | None = None
    sha256: str | None = None
    accuracy: float | None = None
    test_accuracy: float | None = None
    params: int | None = None
    nonzero_params: int | None = None
    macs: int | None = None
    file_bytes: int | None = None
    wire_bytes: int | None = None
    loaded_bytes: int | None = None
    """Memory that the file takes in its runtime on this machine, once loaded and run."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    golden: GoldenFile | None = None


class EvaluationFile(msgspec.Struct, frozen=True, kw_only=True):
    """Labelled samples of the validate split: `x` (N, …) and `y` (N, …)."""

    file: str
    samples: int


class Variants(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `variants.json`; paths are relative to its folder, sizes are bytes."""

    schema: int = SCHEMA
    recipe_digest: str
    model: str
    metric: str
    seed: int
    max_drop: float
    budget: Budget
    evaluation: EvaluationFile
    variants: tuple[VariantResult, ...]
    baseline: str = "original"

    @property
    def worked(self) -> bool:
        """Tell whether any variant beyond the baseline left a file."""
        return any(variant.file is not None for variant in self.variants if variant.name != self.baseline)


def write(folder: Path, variants: Variants) -> None:
    """Write `variants.json` atomically. Raises Unavailable."""
    write_atomically(folder / FILE_NAME, indented(variants).encode() + b"\n")


def read(folder: Path) -> Variants:
    """Read `variants.json` of a compress run. Raises UsageError."""
    path = folder / FILE_NAME
    try:
        plain = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder}: no {FILE_NAME} here; make it with: edgepress compress RECIPE --out {folder}"
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot read ({error.strerror})") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from error
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        found = plain.get("schema") if isinstance(plain, dict) else None
        raise UsageError(f"{path}: expected schema {SCHEMA}, got {found}; run edgepress compress again")
    try:
        return msgspec.convert(plain, Variants)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}") from error
