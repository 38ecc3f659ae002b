"""What a choice must keep to on a board, and what to minimise within it."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec
from edgepress_protocol.errors import UsageError

Goal = Literal["p95_latency_ms", "peak_memory_bytes", "energy_mj", "file_bytes"]
GOALS: tuple[Goal, ...] = get_args(Goal)
LIMITS = {
    "p95_latency_ms": "p95_latency_ms",
    "peak_memory_bytes": "peak_memory_bytes",
    "energy_mj": "energy_mj",
    "max_file_bytes": "file_bytes",
    "max_accuracy_drop": "accuracy_drop",
}
"""Each limit of a budget, and the figure that it limits."""


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[budget]` of a recipe, or the options of `edgepress select`; what is None is not limited.

    `max_accuracy_drop` is against the original model, in the metric's own unit (0.01 is one point of top-1 accuracy).
    """

    max_accuracy_drop: float | None = None
    p95_latency_ms: float | None = None
    peak_memory_bytes: int | None = None
    energy_mj: float | None = None
    max_file_bytes: int | None = None
    minimise: Goal = "p95_latency_ms"

    @property
    def limits(self) -> dict[str, float]:
        """What is limited, by the names of the fields."""
        values = {key: getattr(self, key) for key in LIMITS}
        return {key: value for key, value in values.items() if value is not None}

    def check(self) -> None:
        """Raise UsageError for a limit that nothing could keep."""
        for key, value in self.limits.items():
            if key != "max_accuracy_drop" and not value > 0:
                raise UsageError(f"budget.{key}: expected a number above 0, got {value}")
        if self.max_accuracy_drop is not None and not self.max_accuracy_drop >= 0:
            raise UsageError(f"budget.max_accuracy_drop: expected 0 or more, got {self.max_accuracy_drop}")
