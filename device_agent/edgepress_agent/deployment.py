"""Life of a deployment on a device: a pure table of (phase, event) → (phase, what to do next).

Every event carries the deployment that it is about; one about a deployment that is no longer wanted changes
nothing. `failed` is final for its deployment: another try is another deployment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgepress_protocol.manifest import MAX_TEXT
from edgepress_protocol.messages import Deployment, DeploymentStatus

from edgepress_agent.state.slots import Pair

Phase = Literal["idle", "fetching", "checking", "returning", "starting", "active", "failed"]
Action = Literal["fetch", "check", "verify", "switch", "relabel", "serve", "settle", "undo", "nothing"]
EventKind = Literal[
    "fetched", "unfetchable", "damaged", "passed", "refused", "switched", "unswitchable", "served", "unserved"
]

_REPORTED: dict[Phase, Literal["fetching", "checking", "active", "failed"]] = {
    "fetching": "fetching",
    "checking": "checking",
    "returning": "checking",
    "starting": "checking",
    "active": "active",
    "failed": "failed",
}


@dataclass(frozen=True)
class Deploying:
    """Where the wanted deployment stands."""

    wanted: Deployment | None = None
    phase: Phase = "idle"
    reason: str = ""

    def status(self) -> DeploymentStatus | None:
        """As the host is told; it need not know the agent's finer phases."""
        if self.wanted is None or self.phase == "idle":
            return None
        return DeploymentStatus(self.wanted.id, _REPORTED[self.phase], self.reason)


@dataclass(frozen=True)
class Event:
    """Something that happened to one deployment."""

    deployment: str
    kind: EventKind
    reason: str = ""


_TABLE: dict[tuple[Phase, EventKind], tuple[Phase, Action]] = {
    ("fetching", "fetched"): ("checking", "check"),
    ("fetching", "unfetchable"): ("failed", "nothing"),
    ("checking", "damaged"): ("fetching", "fetch"),
    ("checking", "passed"): ("checking", "switch"),
    ("checking", "refused"): ("failed", "nothing"),
    ("checking", "switched"): ("starting", "serve"),
    ("checking", "unswitchable"): ("failed", "nothing"),
    # The previous model was checked when it was first activated: it is verified and switched to, nothing is fetched.
    ("returning", "passed"): ("returning", "switch"),
    ("returning", "switched"): ("starting", "serve"),
    ("returning", "unswitchable"): ("failed", "nothing"),
    # The kept copy was damaged: fetch it as if it had never been here.
    ("returning", "refused"): ("fetching", "fetch"),
    ("starting", "served"): ("active", "settle"),
    # The model passed its check, and yet does not serve: the former one comes back.
    ("starting", "unserved"): ("failed", "undo"),
    # No way out of "active" and "failed" but another deployment: see `want`.
}


def want(now: Deploying, wanted: Deployment | None, slots: Pair, failed_before: str | None) -> tuple[Deploying, Action]:
    """Take a (new) wish; `failed_before` is the reason if this very deployment has failed already.

    A wish for nothing leaves the current model where it is. While a model is starting the wish waits: a start is
    short and ends in any case, and what is current and what is served must not part.
    """
    if now.phase == "starting" or (wanted is not None and now.wanted == wanted and now.phase != "idle"):
        return now, "nothing"
    if wanted is None:
        return Deploying(), "nothing"
    fresh = Deploying(wanted)
    if failed_before is not None:
        return replace(fresh, phase="failed", reason=failed_before), "nothing"
    if slots.current is not None and slots.current.manifest == wanted.manifest:
        same = slots.current.deployment == wanted.id
        return replace(fresh, phase="active"), "nothing" if same else "relabel"
    if slots.previous is not None and slots.previous.manifest == wanted.manifest:
        return replace(fresh, phase="returning"), "verify"
    return replace(fresh, phase="fetching"), "fetch"


def step(now: Deploying, event: Event) -> tuple[Deploying, Action]:
    """Apply one event.

    >>> wanted = Deployment("0" * 32, "1" * 64)
    >>> step(Deploying(wanted, "fetching"), Event("0" * 32, "fetched"))[1]
    'check'
    """
    if now.wanted is None or event.deployment != now.wanted.id:
        return now, "nothing"
    change = _TABLE.get((now.phase, event.kind))
    if change is None:
        return now, "nothing"
    phase, action = change
    return replace(now, phase=phase, reason=event.reason[:MAX_TEXT] if phase == "failed" else ""), action
