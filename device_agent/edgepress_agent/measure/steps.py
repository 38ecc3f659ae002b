"""States that one run of a model leaves to the next: those in its tensors, and those that it keeps inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepress_agent.measure.tensors import Bound, shape_of, zeros
from edgepress_agent.runtimes._state import KeepsState

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array


class Steps:
    """Runs a model on samples one after another, and hands its state on."""

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._states = self._first_states()

    def restart(self) -> None:
        """Forget all earlier samples."""
        self._states = self._first_states()
        if isinstance(self._bound.model, KeepsState):
            self._bound.model.reset()

    def complete(self, arrays: Sequence[Array]) -> list[Array]:
        """Put the states beside what is fed, in the manifest's order."""
        fed = dict(zip(self._bound.free, arrays, strict=True)) | self._states
        return [fed[position] for position in range(len(self._bound.inputs))]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run on the free inputs, and keep the states that come out."""
        outputs = self._bound.run(self.complete(arrays))
        self.follow(outputs)
        return outputs

    def follow(self, outputs: Sequence[Array]) -> None:
        """Go on from a run that was made elsewhere."""
        self._states = {taker: outputs[giver] for taker, giver in self._bound.carried}

    def _first_states(self) -> dict[int, Array]:
        specs = ((position, self._bound.inputs[position]) for position, _ in self._bound.carried)
        return {position: zeros(spec, shape_of(spec, 1)) for position, spec in specs}
