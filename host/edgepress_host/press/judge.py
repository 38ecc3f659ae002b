"""What became of a step, in words: pure decisions over what was measured."""

from __future__ import annotations

from edgepress_host.variants import Measured, StepResult, Verdict

_LOST = 0.02
"""Share of zeros that may go unremarked: layers that are taken away had their own."""


def judge(
    *,
    tag: str,
    before: Measured,
    after: Measured,
    kept: Measured,
    original: Measured,
    same: bool,
    max_drop: float,
) -> tuple[Verdict, str]:
    """Verdict on one step and its reason.

    `kept` is the last state that the guard let pass, whose zeros count; `same` tells that the step changed no weight
    and no operator.
    """
    drop = original.accuracy - after.accuracy
    sizes = f"file {before.file_bytes:,} → {after.file_bytes:,} bytes"
    scores = f"accuracy {before.accuracy:.4f} → {after.accuracy:.4f}"
    # Shares of a few thousand samples: what differs by less than one sample's share is the same.
    if drop > max_drop + 1e-9:
        return "accuracy guard", f"{tag}: {scores}, {drop:.4f} below the original, more than max_drop {max_drop:g}"
    if _zeros(after) < _zeros(kept) - _LOST:
        return "sparsity lost", (
            f"{tag} left {_zeros(after):.1%} of the weights zero, and there were {_zeros(kept):.1%} ({sizes}; {scores})"
        )
    if same:
        return "no-op", f"{tag} changed no weight and no operator ({sizes})"
    if after.file_bytes > before.file_bytes:
        return "grew", f"{tag} made the file larger ({sizes}; {scores})"
    return "ok", f"{tag}: {scores}, {sizes}"


def _zeros(measured: Measured) -> float:
    return 1 - measured.nonzero_params / measured.params if measured.params else 0.0


def sum_up(steps: tuple[StepResult, ...], *, kept: int, planned: int) -> tuple[Verdict, str]:
    """Verdict on a variant from its steps: what went wrong first, by name; else what was gained."""
    numbered = list(enumerate(steps, start=1))
    for verdict in ("failed", "accuracy guard", "sparsity lost", "no-op", "grew"):
        # What a step lost and a later one trained back is no matter; where it did not come back, the last try says it.
        guards = verdict == "accuracy guard"
        for number, step in reversed(numbered[kept:]) if guards else numbered:
            if step.verdict == verdict:
                return step.verdict, f"step {number}, {step.reason}{_rest(verdict, kept, planned)}"
    return "ok", "; ".join(step.reason for step in steps)


def _rest(verdict: str, kept: int, planned: int) -> str:
    if verdict not in {"failed", "accuracy guard"}:
        return ""
    return f"; kept as of step {kept} of {planned}" if kept else "; nothing was kept"
