"""What a person asks of the fleet, carried out: everything is checked first, then kept, then published."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterable
from typing import TypeVar

import msgspec
from edgepress_protocol.errors import UsageError
from edgepress_protocol.manifest import Blob, EvaluationSet, Golden, Manifest, digest
from edgepress_protocol.messages import Deployment, Trial, encode

from edgepress_host.fleet.fleet import files_of, manifest_of
from edgepress_host.fleet.records import Changes, Conflict, Note, TrialRecord, Unknown
from edgepress_host.fleet.rollout import Rollout, advance, fail
from edgepress_host.fleet.selectors import choose
from edgepress_host.server import shown, views
from edgepress_host.server.core import Core, merge

GRACE_S = 60.0
"""What is younger is never swept: its manifest or trial may be on its way."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
M = TypeVar("M", bound=msgspec.Struct)


async def store_blob(core: Core, sha256: str, pieces: AsyncIterable[bytes]) -> views.BlobView:
    """Store a file that arrives piece by piece, and cut it into chunks.

    Raises:
        UsageError: `sha256` is no digest.
        Rejected: the file's digest is another one.
        Unavailable: the disk is full.
    """
    if not _DIGEST.fullmatch(sha256):
        raise UsageError(f"blob {sha256!r}: expected a SHA-256 in lower-case hex")
    await core.blobs.receive(sha256, pieces)
    blob = core.database.blob(sha256)
    if blob is None or not await asyncio.to_thread(core.blobs.intact, blob):
        # In a form that every device reads. A form once given stays: manifests that devices fetch name it.
        protocol = core.fleet.common_protocol()
        blob = await asyncio.to_thread(core.blobs.describe, sha256, protocol)  # level 19 of zstd takes its time
        core.database.add_blob(blob, time.time())
    return views.BlobView(blob.sha256, blob.size_bytes, blob.wire.size_bytes, blob.wire.codec)


def has_blob(core: Core, sha256: str) -> bool:
    """Tell whether a file is stored, and its wire form with it."""
    blob = core.database.blob(sha256)
    return blob is not None and core.blobs.holds(blob)


def add_manifest(core: Core, asked: views.ManifestIn) -> views.ManifestRef:
    """Make a variant known.

    Raises:
        UsageError: a number in it is one that no message carries.
        Unknown: a blob was not uploaded.
    """
    golden = None
    if asked.golden:
        golden = Golden(_blob(core, asked.golden.blob), asked.golden.atol, asked.golden.rtol)
    manifest = _carried(
        Manifest(
            variant=asked.variant,
            format=asked.format,
            model=_blob(core, asked.model),
            inputs=asked.inputs,
            outputs=asked.outputs,
            golden=golden,
            needs=asked.needs,
        )
    )
    payload = encode(manifest)
    sha256 = digest(payload)
    core.database.add_manifest(sha256, payload, asked.stats, time.time())
    if sha256 not in core.fleet.manifests:
        core.fleet.add_manifest(sha256, payload)
        core.apply(Changes(notes=[Note("manifest", f"{asked.variant}:{asked.format} is new here")]))
    return views.ManifestRef(sha256)


def add_trials(core: Core, asked: views.TrialsIn) -> views.TrialsOut:
    """Queue each manifest on each device; pairs that cannot work are left out, with the reason.

    Raises:
        UsageError: a number in it is one that no message carries.
        Unknown: a device, a manifest or the evaluation's blob is not there.
    """
    devices = choose(asked.devices, core.fleet.devices)
    formats = {sha256: _known(core, sha256) for sha256 in asked.manifests}
    evaluation = None
    if asked.evaluation:
        blob = _blob(core, asked.evaluation.blob)
        evaluation = EvaluationSet(blob, asked.evaluation.samples, asked.evaluation.metric)
    now, queued, skipped = time.time(), [], []
    for device_id in devices:
        for sha256, format_ in formats.items():
            if reason := _unfit(core, device_id, sha256, format_, evaluation):
                skipped.append(views.Skipped(device_id, sha256, reason))
                continue
            trial = _carried(Trial(uuid.uuid4().hex, sha256, evaluation, asked.options))
            queued.append(TrialRecord(trial, device_id, now))
    core.apply(core.fleet.add_trials(queued))
    return views.TrialsOut(tuple(shown.trial(core, record) for record in queued), tuple(skipped))


def roll_out(core: Core, asked: views.RolloutIn) -> Rollout:
    """Start a rollout.

    Raises:
        Unknown: a device or the manifest is not there.
        Conflict: a device cannot run it, or is in another rollout that still goes on.
    """
    devices = choose(asked.devices, core.fleet.devices)
    format_ = _known(core, asked.manifest)
    for device_id in devices:
        if reason := _unfit(core, device_id, asked.manifest, format_):
            raise Conflict(f"{device_id}: {reason}")
        for other in core.rollouts.values():
            if device_id in other.devices:
                name = ":".join(core.fleet.named(other.manifest))
                raise Conflict(
                    f"{device_id} is in a rollout of {name}, which still goes on; "
                    f"roll it back first: edgepress rollback --devices {device_id}"
                )
    canary = min(asked.canary, len(devices))
    rollout = Rollout(uuid.uuid4().hex, asked.manifest, devices, canary, asked.hold_s, time.time())
    step = advance(rollout, core.fleet.devices, time.time())
    core.take_step(None, step)
    return step.rollout


def roll_back(core: Core, asked: views.RollbackIn) -> views.Rollback:
    """Set devices back to what they ran before; an open rollout that holds one of them ends for all of them.

    Raises:
        Unknown: a device is not there.
        Conflict: a device has nothing before, can no longer run what it had, or that is no longer known here.
    """
    devices = choose(asked.devices, core.fleet.devices)
    ending = [rollout for rollout in core.rollouts.values() if set(devices) & set(rollout.devices)]
    covered = {device_id for rollout in ending for device_id in rollout.devices}
    targets: dict[str, str] = {}
    for device_id in devices:
        if device_id in covered:
            continue
        previous = core.fleet.devices[device_id].state.previous
        if previous is None:
            raise Conflict(f"{device_id} has nothing to go back to: it ran one deployment at most")
        if previous.manifest not in core.fleet.manifests:
            raise Conflict(
                f"{device_id} ran {previous.variant!r} before, which this host no longer knows; deploy it again"
            )
        if reason := _unfit(core, device_id, previous.manifest, _known(core, previous.manifest)):
            raise Conflict(f"{device_id} cannot go back to {previous.variant!r}: {reason}")
        targets[device_id] = previous.manifest
    for rollout in ending:
        core.take_step(rollout, fail(rollout, "rolled back by the user"))
    changes = Changes()
    for device_id, sha256 in targets.items():
        merge(changes, core.fleet.deploy(device_id, Deployment(uuid.uuid4().hex, sha256)))
    core.apply(changes)
    for device_id in devices:
        deployment = core.fleet.devices[device_id].deployment
        targets[device_id] = deployment.manifest if deployment else ""
    return views.Rollback(targets)


def forget_device(core: Core, device_id: str) -> None:
    """Remove a device.

    Raises:
        Unknown: it is not there.
    """
    choose(f"id={device_id}", core.fleet.devices)
    core.apply(core.fleet.forget(device_id, time.time()))


def collect_garbage(core: Core, min_age_s: float = GRACE_S) -> views.Removed:
    """Remove manifests and files that nothing refers to."""
    in_use = {record.trial.manifest for record in core.fleet.trials.values()}
    for record in core.fleet.devices.values():
        in_use |= {part.manifest for part in (record.deployment, record.state.active, record.state.previous) if part}
    evaluations = {trial.trial.evaluation.blob.sha256 for trial in core.fleet.trials.values() if trial.trial.evaluation}
    older_than_unix_s = time.time() - min_age_s
    manifests, blobs, kept = core.database.sweep(in_use, evaluations, older_than_unix_s)
    for sha256 in manifests:
        core.fleet.manifests.pop(sha256, None)
    freed_bytes = core.blobs.sweep(kept, older_than_unix_s)
    core.forget_blobs()
    return views.Removed(tuple(manifests), tuple(blobs), freed_bytes)


def _carried(message: M) -> M:
    """Return a message that devices can decode: JSON holds numbers that MessagePack does not.

    Raises:
        UsageError: it cannot be sent.
    """
    try:
        return msgspec.msgpack.decode(encode(message), type=type(message))
    except (OverflowError, msgspec.MsgspecError) as error:
        raise UsageError(f"{type(message).__name__}: cannot be sent: {error}") from error


def _unfit(core: Core, device_id: str, sha256: str, format_: str, evaluation: EvaluationSet | None = None) -> str:
    record = core.fleet.devices[device_id]
    if record.refused:
        return record.refused
    if not record.runs(format_):
        formats = sorted({runtime.format for runtime in record.state.device.runtimes})
        return f"no runtime here runs {format_!r} (it has {', '.join(formats) or 'none'})"
    files = files_of(manifest_of(core.fleet.manifests[sha256]))
    return core.fleet.unread(device_id, (*files, evaluation.blob) if evaluation else files)


def _known(core: Core, sha256: str) -> str:
    """Return the format of a manifest."""
    if sha256 not in core.fleet.manifests:
        raise Unknown(f"no manifest {sha256[:12]}…: make it known with POST /v1/manifests")
    return core.fleet.named(sha256)[1]


def _blob(core: Core, sha256: str) -> Blob:
    blob = core.database.blob(sha256)
    if blob is None or not core.blobs.holds(blob):
        raise Unknown(f"no blob {sha256[:12]}…: upload it with PUT /v1/blobs/{sha256}")
    return blob
