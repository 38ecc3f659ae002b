"""Messages of the wire: two tagged unions in MessagePack, one to a device, one to the host.

Unknown fields are tolerated, so that a newer side can speak to an older one; each field added later has a
default; golden bytes of every message stand in tests/protocol for ever.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from edgepress_protocol.errors import Rejected
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import BlobSize, EvaluationSet, Manifest, Name, Sha256, Text
from edgepress_protocol.measurement import Device, DeviceId, Measurement
from edgepress_protocol.served import InputStats
from edgepress_protocol.version import SPOKEN

MAX_MESSAGE_BYTES = 8 * 1024 * 1024

Generation = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
TrialId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
DeploymentId = TrialId
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
Provider = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9]{0,31}\Z")]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=256)]


class Signed(msgspec.Struct, frozen=True):
    """Bytes and their Ed25519 signature; `signing.verify` opens it."""

    payload: bytes
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


# ---- to a device: the signed desired state, and the host's presence


class ProfileOptions(msgspec.Struct, frozen=True):
    """How a trial is measured.

    `memory_limit_bytes` is the address space that the model may take above the empty runtime's own;
    `when_busy` measures even while the board's serving model has requests. `paced_hz` is the rate of the paced
    latency, 0 for none; `sweep_threads` are numbers of threads to time beside `threads`; `layers` asks for times per
    layer; `soak_s` for a load so long. `timeout_s` counts neither that nor what the board takes to come to rest.
    `providers` are places to run on, in this order (`tensorrt`, `cuda`); what is not there, or cannot run a part of the
    model, leaves it to the CPU.
    """

    windows: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    window_s: Seconds = 10.0
    warmup_runs: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 10
    warmup_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.5
    threads: Threads = 1
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    timeout_s: Seconds = 600.0
    memory_limit_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    energy: bool = True
    when_busy: bool = False
    paced_hz: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 20.0
    sweep_threads: Annotated[tuple[Threads, ...], msgspec.Meta(max_length=16)] = ()
    layers: bool = False
    soak_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0
    providers: Annotated[tuple[Provider, ...], msgspec.Meta(max_length=8)] = ()


class Trial(msgspec.Struct, frozen=True):
    """Run this variant and measure it. `manifest` is the SHA-256 of a signed manifest's payload."""

    id: TrialId
    manifest: Sha256
    evaluation: EvaluationSet | None = None
    options: ProfileOptions = ProfileOptions()


class Deployment(msgspec.Struct, frozen=True):
    """Make this variant the active one."""

    id: DeploymentId
    manifest: Sha256


class Config(msgspec.Struct, frozen=True):
    """Settings of the agent that the host decides."""

    telemetry_s: Seconds = 30.0
    window_chunks: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8
    store_quota_bytes: Annotated[int, msgspec.Meta(ge=1 << 20)] = 2 * 1024**3


class Want(msgspec.Struct, frozen=True, tag="want"):
    """Desired state of one device: complete, never a difference. Lower generations are ignored."""

    fleet: DeviceId
    device: DeviceId
    generation: Generation
    protocol: Count
    deployment: Deployment | None = None
    trials: tuple[Trial, ...] = ()
    manifests: tuple[Signed, ...] = ()
    config: Config = Config()


class HostState(msgspec.Struct, frozen=True, tag="host"):
    """The host's presence (retained; its will says `online=False`)."""

    session: Name
    online: bool
    speaks: tuple[int, int] = SPOKEN


# ---- to the host


class Presence(msgspec.Struct, frozen=True, tag="up"):
    """Presence of a device, with the session that it speaks of: a stale will cannot mark a later session."""

    session: Name
    online: bool


class Active(msgspec.Struct, frozen=True):
    """What occupies a slot of the device."""

    deployment: DeploymentId
    manifest: Sha256
    variant: Name


class DeploymentStatus(msgspec.Struct, frozen=True):
    """Where the wanted deployment stands; `failed` is final for this deployment id, and says why."""

    deployment: DeploymentId
    phase: Literal["fetching", "checking", "active", "failed"]
    reason: Text = ""


class State(msgspec.Struct, frozen=True, tag="state"):
    """Inventory and reported state (retained)."""

    session: Name
    device: Device
    generation: Generation
    active: Active | None = None
    previous: Active | None = None
    deployment: DeploymentStatus | None = None
    waiting_reports: Count = 0
    clock_synced: bool | None = None
    refused: Text = ""


class Need(msgspec.Struct, frozen=True, tag="need"):
    """What the device lacks of one blob, and how many chunks beyond these it can take at a time.

    `missing` has bit i (of byte i // 8, value 1 << i % 8) set where chunk i is missing; empty bytes where
    nothing is missing any more. `stalled` asks for all of `missing` again: nothing of it is on its way.
    """

    wire: Sha256
    size_bytes: BlobSize
    missing: Annotated[bytes, msgspec.Meta(max_length=1 << 17)]
    window_chunks: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    stalled: bool = False


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """A trial that ended in numbers."""

    measurement: Measurement


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A trial that ended otherwise, which is an outcome too."""

    kind: Literal["crash", "timeout", "memory", "golden", "rejected", "unsupported", "error"]
    detail: Text


class Report(msgspec.Struct, frozen=True, tag="report"):
    """Outcome of one trial; sent again until the trial is gone from `want`."""

    trial: TrialId
    manifest: Sha256
    outcome: Measured | Failed


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Where a trial stands, for people who watch."""

    trial: TrialId
    phase: Literal["queued", "fetching", "waiting", "measuring"]
    detail: Text = ""


class Telemetry(msgspec.Struct, frozen=True, tag="telemetry"):
    """The board and its serving model, at intervals. What cannot be read is None.

    Requests and errors are counted since the agent started; `request_latency` and `request_inputs` are of the model
    that serves now: how long its answers took on the board, and the values that it was asked with.
    """

    uptime_s: float
    cpu_percent: float | None = None
    memory_used_bytes: int | None = None
    temperature_celsius: float | None = None
    power_mw: float | None = None
    free_disk_bytes: int | None = None
    requests: Count | None = None
    request_errors: Count | None = None
    request_p50_ms: float | None = None
    simulated: bool = False
    request_latency: Histogram | None = None
    request_inputs: Annotated[tuple[InputStats, ...], msgspec.Meta(max_length=256)] = ()


ToDevice = Want | HostState | Manifest
ToHost = Presence | State | Need | Report | Progress | Telemetry

_encoder = msgspec.msgpack.Encoder()
_to_host: msgspec.msgpack.Decoder[ToHost] = msgspec.msgpack.Decoder(ToHost)
_to_device: msgspec.msgpack.Decoder[ToDevice] = msgspec.msgpack.Decoder(ToDevice)
_signed = msgspec.msgpack.Decoder(Signed)
M = TypeVar("M")


def encode(message: msgspec.Struct) -> bytes:
    """Encode any message, or a `Signed` around one, as MessagePack."""
    return _encoder.encode(message)


def decode_to_host(data: bytes) -> ToHost:
    """Decode what a device sent.

    Raises:
        Rejected: the bytes are no such message.
    """
    return _decode(_to_host, data)


def decode_to_device(data: bytes) -> ToDevice:
    """Decode what the host sent, after its signature was verified where it has one.

    Raises:
        Rejected: the bytes are no such message.
    """
    return _decode(_to_device, data)


def decode_signed(data: bytes) -> Signed:
    """Decode a signed envelope; its payload is not yet to be trusted.

    Raises:
        Rejected: the bytes are no envelope.
    """
    return _decode(_signed, data)


def _decode(decoder: msgspec.msgpack.Decoder[M], data: bytes) -> M:
    if len(data) > MAX_MESSAGE_BYTES:
        raise Rejected(f"message of {len(data)} bytes: at most {MAX_MESSAGE_BYTES} are read")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Rejected(f"not a message of this protocol: {error}") from error
