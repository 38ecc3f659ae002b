"""What can happen to the agent, beside what the link delivers; all of it goes through one inbox, in order."""

from __future__ import annotations

from dataclasses import dataclass

from edgepress_protocol.errors import EdgepressError

from edgepress_agent.deployment import Event
from edgepress_agent.measure.bench import Outcome
from edgepress_agent.state.download import Partial
from edgepress_agent.wire.link import LinkEvent


@dataclass(frozen=True)
class Stored:
    """A download came to its end, well or not."""

    partial: Partial
    error: EdgepressError | None


@dataclass(frozen=True)
class Verified:
    """Blobs of a former run were held against their digests."""


@dataclass(frozen=True)
class Ended:
    """A trial ended; without an outcome where it was withdrawn, or its files are to be fetched again."""

    trial: str
    outcome: Outcome | None


@dataclass(frozen=True)
class Stalled:
    """Something is missing, and nothing arrives."""


@dataclass(frozen=True)
class Noted:
    """Something that the host and the log are to be told; an empty line takes it back."""

    subject: str
    line: str


@dataclass(frozen=True)
class Broke:
    """A job beside the main task hit a bug: the process is to end with it."""

    error: BaseException


Happening = LinkEvent | Event | Stored | Verified | Ended | Stalled | Noted | Broke
