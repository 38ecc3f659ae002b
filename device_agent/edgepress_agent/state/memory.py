"""The few facts that the agent remembers across restarts: whose state this is, and what it has seen."""

from __future__ import annotations

from pathlib import Path

import msgspec
from edgepress_protocol.errors import UsageError
from edgepress_protocol.manifest import Text
from edgepress_protocol.messages import DeploymentId, Generation

from edgepress_agent.log import logger
from edgepress_agent.state.files import Files, write_atomically


class Remembered(msgspec.Struct, frozen=True):
    """The highest generation accepted, and the last deployment that failed: a failure is final for its id."""

    fleet: str
    device: str
    generation: Generation = 0
    failed_deployment: DeploymentId | None = None
    failed_reason: Text = ""


class Memory:
    """`agent.json` in the state folder."""

    def __init__(self, state_dir: Path, fleet: str, device: str, files: Files) -> None:
        self._path = state_dir / "agent.json"
        self._files = files
        self.facts = self._read(Remembered(fleet, device))

    def saw(self, generation: int) -> None:
        """Remember a generation, if it is the highest."""
        if generation > self.facts.generation:
            self._write(msgspec.structs.replace(self.facts, generation=generation))

    def failed(self, deployment: DeploymentId, reason: str) -> None:
        """Remember that a deployment failed."""
        if (deployment, reason) != (self.facts.failed_deployment, self.facts.failed_reason):
            self._write(msgspec.structs.replace(self.facts, failed_deployment=deployment, failed_reason=reason))

    def _read(self, fresh: Remembered) -> Remembered:
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=Remembered)
        except FileNotFoundError:
            return fresh
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            logger.warning("%s is damaged (%s): starting without it", self._path, error)
            return fresh
        if (found.fleet, found.device) != (fresh.fleet, fresh.device):
            raise UsageError(
                f"{self._path.parent} holds the state of device {found.device!r} in fleet {found.fleet!r},"
                f" not of {fresh.device!r} in {fresh.fleet!r}; give each device its own --state-dir"
            )
        return found

    def _write(self, facts: Remembered) -> None:
        self.facts = facts
        try:
            write_atomically(self._files, self._path, msgspec.json.encode(facts))
        except OSError as error:
            # A full disk must not stop the agent; what is lost is the memory across a restart.
            logger.warning("%s: %s; remembered until the next restart only", self._path, error.strerror)
