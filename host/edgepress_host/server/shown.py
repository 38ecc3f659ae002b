"""The core's records as what the REST interface gives."""

from __future__ import annotations

import os
from collections import Counter
from importlib.metadata import version

from edgepress_protocol.messages import Measured

from edgepress_host import keys
from edgepress_host.fleet.fleet import manifest_of
from edgepress_host.fleet.records import OPEN, DeviceRecord, Outcome, TrialRecord, Unknown
from edgepress_host.fleet.rollout import Rollout
from edgepress_host.server import views
from edgepress_host.server.core import Core

_STATES = sorted(OPEN | {"done", "failed", "cancelled", "open"})


def health(core: Core) -> views.Health:
    """Show who the controller is."""
    file = core.endpoint.password_file
    return views.Health(
        version=version("edgepress"),
        fleet=core.settings.fleet,
        broker=core.endpoint.url,
        broker_connected=core.link.connected.is_set(),
        broker_password_file=str(file) if file else None,
        public_key_file=str(core.settings.keys_dir / keys.PUBLIC_NAME),
        session=core.session,
        pid=os.getpid(),
        started_unix_s=core.started_unix_s,
    )


def devices(core: Core) -> views.Devices:
    """Show all devices, by id."""
    open_trials = Counter(trial.device for trial in core.fleet.trials.values())
    records = sorted(core.fleet.devices.values(), key=lambda record: record.id)
    return views.Devices(tuple(_device(core, record, open_trials[record.id]) for record in records))


def _device(core: Core, record: DeviceRecord, open_trials: int) -> views.DeviceView:
    state = record.state
    return views.DeviceView(
        id=record.id,
        online=record.online,
        refused=record.refused or state.refused,
        device=state.device,
        generation=record.generation,
        reported_generation=state.generation,
        wanted=record.deployment,
        active=state.active,
        previous=state.previous,
        deployment=state.deployment,
        open_trials=open_trials,
        waiting_reports=state.waiting_reports,
        rejected_messages=core.rejected[record.id],
        telemetry=core.telemetry.get(record.id),
        last_seen_unix_s=record.last_seen_unix_s,
    )


def manifests(core: Core) -> views.Manifests:
    """Show all manifests, oldest first."""
    found = []
    for sha256, payload, stats, added_unix_s in core.database.manifests():
        manifest = manifest_of(payload)
        found.append(
            views.ManifestView(
                manifest=sha256,
                variant=manifest.variant,
                format=manifest.format,
                model=manifest.model.sha256,
                file_bytes=manifest.model.size_bytes,
                wire_bytes=manifest.model.wire.size_bytes,
                inputs=manifest.inputs,
                outputs=manifest.outputs,
                golden=manifest.golden is not None,
                needs=manifest.needs,
                stats=stats,
                added_unix_s=added_unix_s,
            )
        )
    return views.Manifests(tuple(found))


def trials(core: Core, state: str | None, device: str | None) -> views.Trials:
    """Show trials, oldest first.

    Raises:
        Unknown: there is no such state.
    """
    if state is not None and state not in _STATES:
        raise Unknown(f"no trial state {state!r}: one of {', '.join(_STATES)}")
    return views.Trials(tuple(trial(core, record) for record in core.database.trials(state=state, device=device)))


def trial(core: Core, record: TrialRecord) -> views.TrialView:
    """Show one trial."""
    asked = record.trial
    evaluation = asked.evaluation
    variant, format_ = core.fleet.named(asked.manifest)
    return views.TrialView(
        id=asked.id,
        device=record.device,
        manifest=asked.manifest,
        variant=variant,
        format=format_,
        state=record.state,
        detail=record.detail,
        options=asked.options,
        evaluation=views.EvaluationIn(evaluation.blob.sha256, evaluation.samples, evaluation.metric)
        if evaluation
        else None,
        created_unix_s=record.created_unix_s,
        ended_unix_s=record.ended_unix_s,
    )


def measurements(core: Core, manifest: str | None, device: str | None) -> views.Measurements:
    """Show what was measured, oldest trial first."""
    found = core.database.outcomes(manifest=manifest, device=device)
    return views.Measurements(tuple(_measurement(core, outcome) for outcome in found))


def _measurement(core: Core, outcome: Outcome) -> views.MeasurementView:
    report = outcome.report
    assert isinstance(report.outcome, Measured)
    variant, format_ = core.fleet.named(report.manifest)
    return views.MeasurementView(
        trial=report.trial,
        device=outcome.device.id,
        board=outcome.device.state.device.board,
        manifest=report.manifest,
        variant=variant,
        format=format_,
        measurement=report.outcome.measurement,
        received_unix_s=outcome.received_unix_s,
    )


def rollout(core: Core, rollout_id: str) -> Rollout:
    """Show one rollout.

    Raises:
        Unknown: there is none of this id.
    """
    for found in core.database.rollouts():
        if found.id == rollout_id:
            return found
    raise Unknown(f"no rollout {rollout_id!r}")
