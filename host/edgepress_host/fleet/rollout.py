"""A rollout, pure: a few devices first (the canary), a pause, then the rest; back to what was before at any failure.

canary ─all active→ holding ─hold_s without failure→ rest ─all active→ done
   └───────────────────┴──────────any failure──────────┴──→ failed, and those switched are set back
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
from edgepress_protocol.manifest import Sha256
from edgepress_protocol.messages import Deployment, DeploymentId

from edgepress_host.fleet.records import DeviceRecord

Phase = Literal["canary", "holding", "rest", "done", "failed"]
PHASES: dict[Phase, str] = {
    "canary": "on its way to the first ones",
    "holding": "the first ones are watched",
    "rest": "on its way",
    "done": "active",
    "failed": "failed, set back",
}
"""Each phase as people read it."""

OPEN_PHASES: frozenset[str] = frozenset({"canary", "holding", "rest"})


class Rollout(msgspec.Struct, frozen=True):
    """A manifest on its way to devices, in this order; the first `canary` of them go ahead.

    `previous` holds, for each device that was switched, what it was to run before. `hold_until_unix_s` is set
    while the canary is watched. `reason` says why it failed.
    """

    id: DeploymentId
    manifest: Sha256
    devices: tuple[str, ...]
    canary: int
    hold_s: float
    created_unix_s: float
    phase: Phase = "canary"
    previous: dict[str, Deployment | None] = {}
    hold_until_unix_s: float | None = None
    reason: str = ""

    @property
    def open(self) -> bool:
        """Tell whether it still goes on."""
        return self.phase in OPEN_PHASES

    @property
    def deployment(self) -> Deployment:
        """What its devices are to run."""
        return Deployment(self.id, self.manifest)


class Step(msgspec.Struct, frozen=True):
    """What a rollout does next: what devices are to run from now on, and when to look again at the latest."""

    rollout: Rollout
    deploy: dict[str, Deployment | None] = {}
    wake_at_unix_s: float | None = None


def advance(rollout: Rollout, devices: Mapping[str, DeviceRecord], now_unix_s: float) -> Step:
    """Take a rollout as far as what its devices report allows."""
    if not rollout.open:
        return Step(rollout)
    if failure := _failure(rollout, devices):
        return fail(rollout, failure)
    if rollout.phase == "holding":
        assert rollout.hold_until_unix_s is not None
        if now_unix_s < rollout.hold_until_unix_s:
            return Step(rollout, wake_at_unix_s=rollout.hold_until_unix_s)
        return advance(msgspec.structs.replace(rollout, phase="rest", hold_until_unix_s=None), devices, now_unix_s)
    wanted = rollout.devices[: rollout.canary] if rollout.phase == "canary" else rollout.devices
    if missing := [device_id for device_id in wanted if device_id not in rollout.previous]:
        return _switch(rollout, missing, devices)
    if not _all_active(rollout, wanted, devices):
        return Step(rollout)
    if rollout.phase == "rest":
        return Step(msgspec.structs.replace(rollout, phase="done"))
    until = now_unix_s + (rollout.hold_s if wanted else 0.0)
    return advance(msgspec.structs.replace(rollout, phase="holding", hold_until_unix_s=until), devices, now_unix_s)


def told(rollout: Rollout, name: str) -> str:
    """Where a rollout of the variant `name` stands, in one line."""
    first, more = rollout.devices[:5], len(rollout.devices) - 5
    where = ", ".join(first) + (f" and {more} more" if more > 0 else "")
    return f"{name} on {where}: {PHASES[rollout.phase]}{f': {why(rollout)}' if rollout.phase == 'failed' else ''}"


def why(rollout: Rollout) -> str:
    """Why a rollout failed, and who could not be set back."""
    new = [device_id for device_id, before in rollout.previous.items() if before is None]
    return f"{rollout.reason}; nothing to go back to on {', '.join(new)}" if new else rollout.reason


def fail(rollout: Rollout, reason: str) -> Step:
    """End an open rollout, and set back every device that it switched."""
    failed = msgspec.structs.replace(rollout, phase="failed", reason=reason, hold_until_unix_s=None)
    return Step(failed, dict(rollout.previous))


def _failure(rollout: Rollout, devices: Mapping[str, DeviceRecord]) -> str:
    for device_id in rollout.devices:
        record = devices.get(device_id)
        if record is None:
            return f"{device_id} was removed"
        status = record.state.deployment
        if device_id in rollout.previous and status and status.deployment == rollout.id and status.phase == "failed":
            return f"{device_id}: {status.reason or 'the deployment failed'}"
    return ""


def _switch(rollout: Rollout, names: Iterable[str], devices: Mapping[str, DeviceRecord]) -> Step:
    previous = rollout.previous | {device_id: devices[device_id].deployment for device_id in names}
    return Step(msgspec.structs.replace(rollout, previous=previous), dict.fromkeys(names, rollout.deployment))


def _all_active(rollout: Rollout, names: tuple[str, ...], devices: Mapping[str, DeviceRecord]) -> bool:
    states = (devices[device_id].state for device_id in names)
    return all(state.active is not None and state.active.deployment == rollout.id for state in states)
