"""What a runtime may offer beside what every runtime must: to be timed closer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgepress_protocol.measurement import Layer

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array


@runtime_checkable
class Repeats(Protocol):
    """A model that can hold its inputs: what is timed is then the runtime alone, as its own benchmark times it."""

    def repeat(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """Take inputs, and return what runs once on them each time that it is called."""


@runtime_checkable
class TellsLayers(Protocol):
    """A runtime's module that can time each layer."""

    def layer_times(
        self, path: Path, threads: int, inputs: Sequence[Array], runs: int, providers: Sequence[str]
    ) -> tuple[Layer, ...]:
        """Load the file once more, under the runtime's profiler, and return its layers and where each one ran."""
