"""The fleet, pure: what devices said and what they are to do, in; what changed, out.

No input or output happens here. Each event returns `Changes`: records to be kept, wants to be published again, and
lines for people. A device's desired state is complete in every `want`; its generation only ever rises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
from edgepress_protocol.codec import read_by
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Blob, Manifest
from edgepress_protocol.messages import (
    MAX_MESSAGE_BYTES,
    Config,
    Deployment,
    Failed,
    Presence,
    Progress,
    Report,
    Signed,
    State,
    Trial,
    Want,
    encode,
)
from edgepress_protocol.version import SPOKEN, negotiate

from edgepress_host.fleet.records import OPEN, Changes, DeviceRecord, Note, Outcome, TrialRecord, TrialState, Unknown

WANT_BYTES = MAX_MESSAGE_BYTES // 2
"""Trials beyond this size of a want stay queued for a later generation."""

MAX_GENERATION = 1 << 62

_DOES = {"fetching": "fetches", "checking": "checks", "active": "runs", "failed": "could not run"}


class Fleet:
    """Devices and their open trials."""

    def __init__(
        self,
        name: str,
        devices: Iterable[DeviceRecord] = (),
        trials: Iterable[TrialRecord] = (),
        manifests: Mapping[str, bytes] | None = None,
        config: Config | None = None,
    ) -> None:
        self.name = name
        self.devices = {record.id: record for record in devices}
        self.trials = {record.trial.id: record for record in trials if record.state in OPEN}
        self.manifests = dict(manifests or {})
        self.config = config or Config()
        self._presence: dict[str, Presence] = {}
        self._names: dict[str, tuple[str, str]] = {}

    # ---- what a device is to do

    def want(self, device_id: str, sign: Callable[[bytes], Signed]) -> Want | None:
        """Desired state of a device, or None where no protocol version is common to both sides."""
        record = self.devices[device_id]
        if record.refused:
            return None
        protocol = negotiate(SPOKEN, record.state.device.speaks)
        trials, manifests = self._fitting(record)
        return Want(
            fleet=self.name,
            device=device_id,
            generation=record.generation,
            protocol=protocol,
            deployment=record.deployment,
            trials=trials,
            manifests=tuple(sign(self.manifests[sha256]) for sha256 in manifests),
            config=self.config,
        )

    def _fitting(self, record: DeviceRecord) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
        manifests = dict.fromkeys([record.deployment.manifest] if record.deployment else [])
        size = sum(len(self.manifests[sha256]) for sha256 in manifests)
        trials: list[Trial] = []
        for trial in (one.trial for one in self.trials.values() if one.device == record.id):
            size += len(encode(trial))
            size += 0 if trial.manifest in manifests else len(self.manifests[trial.manifest])
            if trials and size > WANT_BYTES:
                break
            trials.append(trial)
            manifests[trial.manifest] = None
        return tuple(trials), tuple(manifests)

    def common_protocol(self) -> int:
        """Highest protocol version that every device speaks which gets wants at all."""
        spoken = [record.state.device.speaks for record in self.devices.values() if not record.refused]
        return min((negotiate(SPOKEN, speaks) for speaks in spoken), default=SPOKEN[1])

    def unread(self, device_id: str, blobs: Iterable[Blob]) -> str:
        """Say why a device could not expand one of these files; empty where it can expand all of them."""
        protocol = negotiate(SPOKEN, self.devices[device_id].state.device.speaks)
        codecs = {blob.wire.codec for blob in blobs} - set(read_by(protocol))
        if not codecs:
            return ""
        return (
            f"it speaks protocol version {protocol}, which has no {'/'.join(sorted(codecs))} to travel in;"
            " upgrade edgepress on it"
        )

    def add_manifest(self, sha256: str, payload: bytes) -> None:
        """Make a manifest known."""
        self.manifests[sha256] = payload

    def named(self, sha256: str) -> tuple[str, str]:
        """Variant and format of a known manifest."""
        if sha256 not in self._names:
            manifest = manifest_of(self.manifests[sha256])
            self._names[sha256] = (manifest.variant, manifest.format)
        return self._names[sha256]

    def add_trials(self, records: Iterable[TrialRecord]) -> Changes:
        """Queue trials for known devices and manifests."""
        changes = Changes()
        for record in records:
            self._keep(changes, record)
            self._touch(changes, record.device)
        return changes

    def cancel(self, trial_id: str, now_unix_s: float) -> Changes:
        """Take an open trial back.

        Raises:
            Unknown: no such trial is open.
        """
        record = self.trials.get(trial_id)
        if record is None:
            raise Unknown(f"no open trial {trial_id!r}: it ended, was cancelled, or never was")
        changes = Changes()
        self._close(changes, record, "cancelled", "cancelled by the user", now_unix_s)
        return changes

    def deploy(self, device_id: str, deployment: Deployment | None) -> Changes:
        """Set what a device is to have active."""
        changes = Changes()
        record = self.devices[device_id]
        if record.deployment != deployment:
            self.devices[device_id] = msgspec.structs.replace(record, deployment=deployment)
            self._touch(changes, device_id)
            wanted = self._name(deployment.manifest) if deployment else "nothing"
            changes.notes.append(Note("device", f"{device_id} is to run {wanted}", device=device_id))
        return changes

    def forget(self, device_id: str, now_unix_s: float) -> Changes:
        """Remove a device and cancel its open trials; its measurements stay."""
        changes = Changes()
        for record in [one for one in self.trials.values() if one.device == device_id]:
            self._close(changes, record, "cancelled", "the device was removed", now_unix_s)
        del self.devices[device_id]
        self._presence.pop(device_id, None)
        changes.devices.clear()
        changes.wants.clear()
        changes.forgotten.append(device_id)
        changes.notes.append(Note("device", f"{device_id} was removed", device=device_id))
        return changes

    # ---- what a device says

    def session(self, device_id: str) -> str:
        """Session that a device was last known by; empty where it never was."""
        record, known = self.devices.get(device_id), self._presence.get(device_id)
        return record.session if record else known.session if known else ""

    def on_presence(self, device_id: str, presence: Presence, now_unix_s: float) -> Changes:
        """Note that a device came or went; the will of an earlier session changes nothing."""
        changes = Changes()
        record = self.devices.get(device_id)
        if presence.online or self.session(device_id) in {"", presence.session}:
            self._presence[device_id] = presence
            if record:
                seen = {"session": presence.session, "online": presence.online, "last_seen_unix_s": now_unix_s}
                self._update(changes, record, **seen)
        return changes

    def on_state(self, device_id: str, state: State, now_unix_s: float) -> Changes:
        """Take in what a device reports of itself; a device seen for the first time joins the fleet here.

        Raises:
            Rejected: it reports in another device's name, or a generation that cannot be.
        """
        if state.device.id != device_id:
            raise Rejected(f"reports its state under the name {state.device.id!r}")
        if state.generation > MAX_GENERATION:
            raise Rejected(f"reports generation {state.generation}, which leaves no room above it")
        changes = Changes()
        record, presence = self.devices.get(device_id), self._presence.get(device_id)
        refused = _refusal(state)
        if record is None:
            self.devices[device_id] = DeviceRecord(state, state.generation, deployment=self._adopted(state))
            self._touch(changes, device_id)
            changes.notes.append(Note("device", f"{device_id} joined: {state.device.board.model}", device=device_id))
        elif state.generation > record.generation:
            self._update(changes, record, generation=state.generation)
            self._touch(changes, device_id)
            changes.notes.append(
                Note(
                    "device",
                    f"{device_id} was told more than this controller remembers; going on from there",
                    device=device_id,
                )
            )
        elif record.refused and not refused:
            changes.wants.add(device_id)
        record = self.devices[device_id]
        online = presence.online if presence and presence.session == state.session else record.online
        told = {"state": state, "session": state.session, "online": online, "refused": refused}
        self._update(changes, record, **told, last_seen_unix_s=now_unix_s)
        return changes

    def on_progress(self, device_id: str, progress: Progress) -> Changes:
        """Note where a trial stands. Progress of a trial that is no longer open comes late and says nothing.

        Raises:
            Rejected: the trial is another device's.
        """
        changes = Changes()
        record = self._open_trial(device_id, progress.trial)
        if record and (record.state, record.detail) != (progress.phase, progress.detail):
            moved = msgspec.structs.replace(record, state=progress.phase, detail=progress.detail)
            self._keep(changes, moved)
        return changes

    def on_report(self, device_id: str, report: Report, now_unix_s: float) -> Changes:
        """Close a trial with its outcome; a report that comes again changes nothing.

        Raises:
            Rejected: the trial is another device's, or of another manifest.
        """
        changes = Changes()
        record = self._open_trial(device_id, report.trial)
        if record is None:
            return changes
        if report.manifest != record.trial.manifest:
            raise Rejected(f"reports trial {report.trial} with another manifest than it was given")
        changes.outcomes.append(Outcome(report, self.devices[device_id], now_unix_s))
        if isinstance(report.outcome, Failed):
            self._close(changes, record, "failed", f"{report.outcome.kind}: {report.outcome.detail}", now_unix_s)
        else:
            self._close(changes, record, "done", "", now_unix_s)
        return changes

    def disconnected(self) -> Changes:
        """Take the broker for gone: no device's presence is known until it speaks again."""
        changes = Changes()
        self._presence.clear()
        for record in list(self.devices.values()):
            self._update(changes, record, online=False)
        return changes

    # ---- the bookkeeping

    def _adopted(self, state: State) -> Deployment | None:
        """Keep what a device runs, as far as this host knows it: a host that lost its records changes nothing."""
        active = state.active
        known = active is not None and active.manifest in self.manifests
        return Deployment(active.deployment, active.manifest) if active and known else None

    def _open_trial(self, device_id: str, trial_id: str) -> TrialRecord | None:
        record = self.trials.get(trial_id)
        if record and record.device != device_id:
            raise Rejected(f"speaks of trial {trial_id}, which is another device's")
        return record

    def _close(self, changes: Changes, record: TrialRecord, state: TrialState, detail: str, now_unix_s: float) -> None:
        ended = msgspec.structs.replace(record, state=state, detail=detail, ended_unix_s=now_unix_s)
        self._keep(changes, ended)
        self._touch(changes, record.device)

    def _keep(self, changes: Changes, record: TrialRecord) -> None:
        if record.state in OPEN:
            self.trials[record.trial.id] = record
        else:
            self.trials.pop(record.trial.id, None)
        changes.trials[record.trial.id] = record
        text = f"{record.device}: {self._name(record.trial.manifest)} {record.state}"
        text += f": {record.detail}" if record.detail else ""
        changes.notes.append(Note("trial", text, device=record.device, trial=record.trial.id))

    def _touch(self, changes: Changes, device_id: str) -> None:
        """Raise the generation once per event: the device's want is another one now."""
        if device_id in changes.wants:
            return
        record = self.devices[device_id]
        self.devices[device_id] = msgspec.structs.replace(record, generation=record.generation + 1)
        changes.devices[device_id] = self.devices[device_id]
        changes.wants.add(device_id)

    def _update(self, changes: Changes, before: DeviceRecord, **fields: object) -> None:
        after = msgspec.structs.replace(before, **fields)
        self.devices[after.id] = changes.devices[after.id] = after
        changes.notes.extend(Note("device", text, device=after.id) for text in self._differences(before, after))

    def _name(self, sha256: str) -> str:
        return ":".join(self.named(sha256))

    def _differences(self, before: DeviceRecord, after: DeviceRecord) -> Iterator[str]:
        """Say in words what changed; empty words where nothing did that a person asks for."""
        if before.online != after.online:
            yield f"{after.id} is {'online' if after.online else 'offline'}"
        if after.refused and before.refused != after.refused:
            yield f"{after.id} is refused: {after.refused}"
        if after.state.refused and before.state.refused != after.state.refused:
            yield f"{after.id} refuses: {after.state.refused}"
        status, active = after.state.deployment, after.state.active
        if status and before.state.deployment != status:
            ours = after.deployment and after.deployment.id == status.deployment
            what = self._name(after.deployment.manifest) if after.deployment and ours else "what it was told before"
            yield f"{after.id} {_DOES[status.phase]} {what}{f': {status.reason}' if status.reason else ''}"
        elif before.state.active != active:
            yield f"{after.id} runs {active.variant if active else 'nothing'}"
        elif before.state != after.state:
            yield ""


def files_of(manifest: Manifest) -> tuple[Blob, ...]:
    """Return the files that a manifest names."""
    return (manifest.model, manifest.golden.blob) if manifest.golden else (manifest.model,)


def manifest_of(payload: bytes) -> Manifest:
    """Decode a manifest that this host made."""
    return msgspec.msgpack.decode(payload, type=Manifest)


def _refusal(state: State) -> str:
    try:
        negotiate(SPOKEN, state.device.speaks)
    except Rejected as error:
        return str(error)
    return ""
