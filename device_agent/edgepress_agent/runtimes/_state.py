"""What a runtime may offer beside what every runtime must: to keep state, to run elsewhere, to look at files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from edgepress_agent.runtimes import Model


@runtime_checkable
class KeepsState(Protocol):
    """A model that may remember earlier runs."""

    @property
    def stateful(self) -> bool:
        """Whether this one does."""

    def reset(self) -> None:
        """Forget them: the next run is a first one."""


@runtime_checkable
class RunsOn(Protocol):
    """A model that says where it runs."""

    @property
    def providers(self) -> tuple[str, ...]:
        """Names in lower case, the preferred one first (`tensorrt`, `cuda`, `cpu`)."""


@runtime_checkable
class TakesProviders(Protocol):
    """A runtime's module that runs files elsewhere than on the CPU."""

    def load_on(self, path: Path, threads: int, providers: Sequence[str]) -> Model:
        """Load a file to run on these, in this order, as far as they are here; what they cannot run, the CPU does."""


@runtime_checkable
class Inspects(Protocol):
    """A runtime's module that looks at a file before the runtime does."""

    def inspect(self, path: Path) -> None:
        """Refuse what must not be loaded. Raises Rejected."""
