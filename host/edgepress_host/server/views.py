"""What the REST interface takes and gives, as JSON; the CLI reads these same records."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from edgepress_protocol.manifest import Name, Sha256, TensorSpec, Text
from edgepress_protocol.measurement import Board, Device, Measurement
from edgepress_protocol.messages import (
    Active,
    Deployment,
    DeploymentStatus,
    ProfileOptions,
    Telemetry,
)

from edgepress_host.fleet.records import TrialState
from edgepress_host.fleet.rollout import Rollout

Selector = Annotated[str, msgspec.Meta(min_length=1, max_length=65_536)]
"""`all`, `id=a,b`, `kind=raspberry-pi-5`, `runtime=onnx`, or plain ids with commas."""


# ---- what it takes


class GoldenIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Golden vectors of a new manifest, by the digest of an uploaded blob."""

    blob: Sha256
    atol: float
    rtol: float


class ManifestIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new manifest; `model` and `golden.blob` were uploaded before. `stats` are kept as they come."""

    variant: Name
    format: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    model: Sha256
    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=64)]
    golden: GoldenIn | None = None
    needs: Text = ""
    stats: dict[str, Any] = {}


class EvaluationIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An evaluation set, by the digest of an uploaded blob."""

    blob: Sha256
    samples: Annotated[int, msgspec.Meta(ge=1)]
    metric: Literal["top1", "neg_mse"] = "top1"


class TrialsIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measure each manifest on each device."""

    manifests: Annotated[tuple[Sha256, ...], msgspec.Meta(min_length=1, max_length=10_000)]
    devices: Selector = "all"
    evaluation: EvaluationIn | None = None
    options: ProfileOptions = ProfileOptions()


class RolloutIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deploy a manifest: first to `canary` devices, and `hold_s` after these are active, to the rest."""

    manifest: Sha256
    devices: Selector = "all"
    canary: Annotated[int, msgspec.Meta(ge=0)] = 0
    hold_s: Annotated[float, msgspec.Meta(ge=0, le=604_800)] = 0.0


class RollbackIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Set devices back to the variant that they ran before."""

    devices: Selector


# ---- what it gives


class ErrorView(msgspec.Struct, frozen=True):
    """Every answer of status 4xx or 5xx."""

    error: str


class Health(msgspec.Struct, frozen=True):
    """The controller. `broker` is a URL without password; the embedded one's is in `broker_password_file`, if any."""

    version: str
    fleet: str
    broker: str
    broker_connected: bool
    broker_password_file: str | None
    public_key_file: str
    session: str
    pid: int
    started_unix_s: float


class DeviceView(msgspec.Struct, frozen=True):
    """A device: its inventory, what it is to do (`wanted`) and what it says it does."""

    id: str
    online: bool
    refused: str
    device: Device
    generation: int
    reported_generation: int
    wanted: Deployment | None
    active: Active | None
    previous: Active | None
    deployment: DeploymentStatus | None
    open_trials: int
    waiting_reports: int
    rejected_messages: int
    telemetry: Telemetry | None
    last_seen_unix_s: float


class Devices(msgspec.Struct, frozen=True):
    """All devices, by id."""

    devices: tuple[DeviceView, ...]


class BlobView(msgspec.Struct, frozen=True):
    """A stored file."""

    sha256: str
    size_bytes: int
    wire_bytes: int
    codec: str


class ManifestRef(msgspec.Struct, frozen=True):
    """Digest of a manifest that is now known."""

    manifest: str


class ManifestView(msgspec.Struct, frozen=True):
    """A known manifest, without its chunk digests."""

    manifest: str
    variant: str
    format: str
    model: str
    file_bytes: int
    wire_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: bool
    needs: str
    stats: dict[str, Any]
    added_unix_s: float


class Manifests(msgspec.Struct, frozen=True):
    """All manifests, oldest first."""

    manifests: tuple[ManifestView, ...]


class TrialView(msgspec.Struct, frozen=True):
    """A trial and where it stands."""

    id: str
    device: str
    manifest: str
    variant: str
    format: str
    state: TrialState
    detail: str
    options: ProfileOptions
    evaluation: EvaluationIn | None
    created_unix_s: float
    ended_unix_s: float | None


class Trials(msgspec.Struct, frozen=True):
    """Trials, oldest first."""

    trials: tuple[TrialView, ...]


class Skipped(msgspec.Struct, frozen=True):
    """A pair that cannot be tried, and why."""

    device: str
    manifest: str
    reason: str


class TrialsOut(msgspec.Struct, frozen=True):
    """Trials that were queued, and pairs for which none was."""

    trials: tuple[TrialView, ...]
    skipped: tuple[Skipped, ...]


class MeasurementView(msgspec.Struct, frozen=True):
    """What a trial measured, with the board on which it did."""

    trial: str
    device: str
    board: Board
    manifest: str
    variant: str
    format: str
    measurement: Measurement
    received_unix_s: float


class Measurements(msgspec.Struct, frozen=True):
    """Measurements, oldest first."""

    measurements: tuple[MeasurementView, ...]


class Rollouts(msgspec.Struct, frozen=True):
    """Rollouts, oldest first."""

    rollouts: tuple[Rollout, ...]


class Rollback(msgspec.Struct, frozen=True):
    """Devices that were set back, each with the manifest that it goes back to."""

    devices: dict[str, str]


class Removed(msgspec.Struct, frozen=True):
    """What a clean-up removed."""

    manifests: tuple[str, ...]
    blobs: tuple[str, ...]
    freed_bytes: int


class Change(msgspec.Struct, frozen=True):
    """Something changed: what it concerns, and a line for people, empty where it is nothing that they ask for."""

    seq: int
    unix_s: float
    kind: str
    text: str
    device: str | None = None
    trial: str | None = None
    rollout: str | None = None


class Changes(msgspec.Struct, frozen=True):
    """Changes after the sequence number that was asked for; ask next with `seq`."""

    seq: int
    changes: tuple[Change, ...]


class Running(msgspec.Struct, frozen=True):
    """DATA_DIR/controller.json: where the running controller is, for the CLI."""

    url: str
    token_file: str
    pid: int
