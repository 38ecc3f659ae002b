"""What the device says to the host, each on its topic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from edgepress_protocol.messages import Need, Presence, Progress, Report, State, Telemetry, encode

from edgepress_agent.settings import Settings
from edgepress_agent.wire.link import Link, Operation, Publish, Subscribe, Unsubscribe


class Voice:
    """Speaks while there is a connection; otherwise nothing is said, and everything again at the next one."""

    def __init__(self, settings: Settings, link: Link) -> None:
        self._topics = settings.topics
        self._device = settings.device_id
        self._link = link
        self._last_state = b""

    def greet(self, session: str) -> None:
        """Say that the device is here; the next state is said even if it is the old one."""
        self._last_state = b""
        self._say("up", Presence(session, online=True), retain=True)

    def state(self, state: State) -> None:
        """Say the state, if it differs from what this session has said."""
        payload = encode(state)
        if payload != self._last_state:
            self._last_state = payload
            self._say("state", state, retain=True)

    def needs(self, needs: Iterable[Need]) -> None:
        """Say what is missing of each blob."""
        for need in needs:
            self._say("need", need)

    def reports(self, reports: Iterable[Report]) -> None:
        """Say how trials ended."""
        for report in reports:
            self._say("report", report)

    def progress(self, progress: Progress) -> None:
        """Say where a trial stands."""
        self._say("tm", progress)

    def telemetry(self, telemetry: Telemetry) -> None:
        """Say how the board is; a lost one is replaced by the next."""
        self._say("tm", telemetry, qos=0)

    def listen(self, wires: Sequence[str]) -> None:
        """Subscribe to the broadcast of blobs, before saying what is needed of them."""
        if wires:
            self._do(Subscribe(tuple(self._topics.blob(wire) for wire in wires)))

    def stop_listening(self, wires: Sequence[str]) -> None:
        """Give up broadcasts."""
        if wires:
            self._do(Unsubscribe(tuple(self._topics.blob(wire) for wire in wires)))

    def _say(self, leaf: str, message: msgspec.Struct, *, qos: int = 1, retain: bool = False) -> None:
        self._do(Publish(self._topics.device(self._device, leaf), encode(message), qos, retain))

    def _do(self, operation: Operation) -> None:
        self._link.send(operation)
