"""What the host keeps of a fleet: devices, trials, how they ended, and what came of an event."""

from __future__ import annotations

from typing import Literal

import msgspec
from edgepress_protocol.errors import UsageError
from edgepress_protocol.messages import Deployment, Report, State, Trial

TrialState = Literal["queued", "fetching", "waiting", "measuring", "done", "failed", "cancelled"]
OPEN: frozenset[str] = frozenset({"queued", "fetching", "waiting", "measuring"})


class Unknown(UsageError):  # noqa: N818 - it names what the user asked for
    """The user named something that is not there."""


class Conflict(UsageError):  # noqa: N818 - the same
    """What the user asked for does not go together with what is going on."""


class DeviceRecord(msgspec.Struct, frozen=True):
    """A device: its last state, its presence, and what it is to do. `refused` says why it gets no want."""

    state: State
    generation: int
    session: str = ""
    online: bool = False
    deployment: Deployment | None = None
    refused: str = ""
    last_seen_unix_s: float = 0.0

    @property
    def id(self) -> str:
        """Name of the device."""
        return self.state.device.id

    def runs(self, format_: str) -> bool:
        """Tell whether one of its runtimes runs artifacts of this format."""
        return any(runtime.format == format_ for runtime in self.state.device.runtimes)


class TrialRecord(msgspec.Struct, frozen=True):
    """A trial and where it stands."""

    trial: Trial
    device: str
    created_unix_s: float
    state: TrialState = "queued"
    detail: str = ""
    ended_unix_s: float | None = None


class Outcome(msgspec.Struct, frozen=True):
    """How a trial ended, with the device as it was then."""

    report: Report
    device: DeviceRecord
    received_unix_s: float


class Note(msgspec.Struct, frozen=True):
    """What changed, and a line for people; the line is empty where there is nothing that they ask for."""

    kind: Literal["device", "trial", "rollout", "manifest", "controller"]
    text: str
    device: str | None = None
    trial: str | None = None
    rollout: str | None = None


class Changes(msgspec.Struct):
    """What came of an event: records to keep, wants to publish, lines to show."""

    devices: dict[str, DeviceRecord] = {}
    trials: dict[str, TrialRecord] = {}
    outcomes: list[Outcome] = []
    wants: set[str] = set()
    notes: list[Note] = []
    forgotten: list[str] = []
