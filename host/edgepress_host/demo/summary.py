"""What the demo says at its end: gains as measured in this very run, and nothing else."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from edgepress_host import units, variants
from edgepress_host.choice import choices, gains
from edgepress_host.choice.gains import Gains
from edgepress_host.cli._shared import safe, table


def summarise(out: Path, console: Console) -> None:
    """Print, per board, how much smaller and faster its choice is than the original there."""
    made = choices.read(out / "choice.json")
    tests = {(one.name, one.format): one.test_accuracy for one in variants.read(out).variants}
    shown = table(
        ("board", "choice", "file", "p50", "peak memory", "accuracy", "test accuracy"),
        title="Against the original in the same format, as measured on the boards in this run",
        right=("file", "p50", "peak memory", "accuracy", "test accuracy"),
    )
    for choice in made.choices:
        found = gains.of(choice)
        if choice.winner is None or found is None:
            shown.add_row(safe(choice.group), safe(choice.why or "no measurement of the original"))
            continue
        test = tests.get((choice.winner.variant, choice.winner.format))
        shown.add_row(safe(choice.group), safe(found.chosen), *_cells(found), units.score(test))
    console.print()
    console.print(shown)
    console.print(
        "accuracy: change on the evaluation set pushed to the boards (from validate); test accuracy: measured once, on"
        " the host, of the very file",
        style="dim",
    )


def _cells(found: Gains) -> tuple[str, ...]:
    return (
        _times(found.smaller, "smaller", "larger"),
        _times(found.faster, "faster", "slower"),
        _times(found.less_memory, "less", "more"),
        units.percent(found.accuracy_change, signed=True),
    )


def _times(ratio: float | None, better: str, worse: str) -> str:
    """Write a ratio in words.

    >>> _times(3.21, "smaller", "larger"), _times(0.5, "faster", "slower"), _times(None, "", "")
    ('3.21 × smaller', '2.00 × slower', '—')
    """
    if ratio is None or ratio <= 0:
        return units.BLANK
    return f"{ratio:.2f} × {better}" if ratio >= 1 else f"{1 / ratio:.2f} × {worse}"
