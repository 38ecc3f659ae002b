"""An artifact on this machine: one variant in one format, all that a device needs of it, and its way there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from edgepress_protocol.errors import UsageError
from edgepress_protocol.manifest import TensorSpec

from edgepress_host import variants
from edgepress_host.text import one_line
from edgepress_host.variants import VariantResult, Variants

if TYPE_CHECKING:
    from edgepress_host.client.client import Client
    from edgepress_host.server.views import EvaluationIn

Metric = Literal["top1", "neg_mse"]
DEVICE_METRICS: dict[str, Metric] = {"top1": "top1", "neg_mse": "neg_mse"}


class GoldenFile(msgspec.Struct, frozen=True):
    """A safetensors file of golden vectors, and how far a device's outputs may be from them."""

    path: Path
    atol: float
    rtol: float


class EvaluationFile(msgspec.Struct, frozen=True):
    """A safetensors file of labelled samples: `x` (N, …) and `y` (N,)."""

    path: Path
    samples: int
    metric: Metric


class Artifact(msgspec.Struct, frozen=True):
    """One variant in one format. `stats` are facts of the host's that travel to the controller as they are."""

    variant: str
    format: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: GoldenFile | None = None
    needs: str = ""
    stats: dict[str, Any] = {}
    sha256: str | None = None
    """What the file's digest was when it was made; None where nobody noted it."""

    @property
    def name(self) -> str:
        """`variant:format`, as commands take it."""
        return f"{self.variant}:{self.format}"


def of_folder(folder: Path) -> list[Artifact]:
    """Every file that a compress run left in `folder`, in its order.

    Raises:
        UsageError: there is no `variants.json`, or none of its variants left a file.
    """
    listed = variants.read(folder)
    found = [_of_result(folder, listed, result) for result in listed.variants if result.file is not None]
    if not found:
        raise UsageError(f"{folder}: no variant left a file; `{variants.FILE_NAME}` says why")
    return found


def evaluation_of(folder: Path) -> EvaluationFile | None:
    """Return the evaluation set beside the variants; None where its metric is one that no device has."""
    listed = variants.read(folder)
    metric = DEVICE_METRICS.get(listed.metric)
    if metric is None:
        return None
    return EvaluationFile(folder / listed.evaluation.file, listed.evaluation.samples, metric)


def evaluation_file(path: Path, metric: Metric) -> EvaluationFile:
    """Describe a user's own evaluation set. Raises UsageError where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            shapes = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: expected a safetensors file with x and y ({one_line(error)})") from error
    if not {"x", "y"} <= shapes.keys():
        raise UsageError(f"{path}: expected tensors x and y, got {', '.join(sorted(shapes)) or 'none'}")
    if not shapes["x"] or shapes["x"][0] == 0 or shapes["x"][:1] != shapes["y"][:1]:
        raise UsageError(f"{path}: expected as many labels as samples, got x {shapes['x']} and y {shapes['y']}")
    return EvaluationFile(path, shapes["x"][0], metric)


def _of_result(folder: Path, listed: Variants, result: VariantResult) -> Artifact:
    assert result.file is not None
    vectors = result.golden
    golden = GoldenFile(folder / vectors.file, vectors.atol, vectors.rtol) if vectors else None
    facts = msgspec.to_builtins(result)
    for known_elsewhere in ("name", "format", "file", "sha256", "inputs", "outputs", "golden"):
        facts.pop(known_elsewhere)
    about = {"recipe_digest": listed.recipe_digest, "metric": listed.metric, "source": listed.model}
    return Artifact(
        variant=result.name,
        format=result.format,
        path=folder / result.file,
        inputs=result.inputs,
        outputs=result.outputs,
        golden=golden,
        stats=facts | about,
        sha256=result.sha256,
    )


def push(client: Client, artifacts: Iterable[Artifact]) -> dict[str, str]:
    """Upload files and add manifests; returns the manifest's digest for each `variant:format`.

    Raises:
        UsageError: a file is missing, or is no longer what it was when it was listed.
    """
    from edgepress_host.server.views import GoldenIn, ManifestIn

    manifests: dict[str, str] = {}
    for artifact in artifacts:
        model = digest(artifact.path)
        if artifact.sha256 not in (None, model):
            raise UsageError(
                f"{artifact.path}: the file was changed after it was listed; run `edgepress compress` again"
            )
        golden = None
        if artifact.golden is not None:
            blob = digest(artifact.golden.path)
            client.upload(artifact.golden.path, blob)
            golden = GoldenIn(blob, artifact.golden.atol, artifact.golden.rtol)
        client.upload(artifact.path, model)
        manifests[artifact.name] = client.add_manifest(
            ManifestIn(
                variant=artifact.variant,
                format=artifact.format,
                model=model,
                inputs=artifact.inputs,
                outputs=artifact.outputs,
                golden=golden,
                needs=artifact.needs,
                stats=artifact.stats,
            )
        )
    return manifests


def push_evaluation(client: Client, evaluation: EvaluationFile | None) -> EvaluationIn | None:
    """Upload an evaluation set."""
    from edgepress_host.server.views import EvaluationIn

    if evaluation is None:
        return None
    blob = digest(evaluation.path)
    client.upload(evaluation.path, blob)
    return EvaluationIn(blob, evaluation.samples, evaluation.metric)


def digest(path: Path) -> str:
    """SHA-256 of a file. Raises UsageError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
