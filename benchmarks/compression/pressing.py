"""A recipe pressed, and its files against the original in the same format, as rows of a table."""

from __future__ import annotations

from pathlib import Path

import msgspec
import timing
from edgepress_host import recipe
from edgepress_host.cli._progress import drawn
from edgepress_host.compress import compress
from edgepress_host.press.data import Data
from edgepress_host.press.loading import resolve_callable
from edgepress_host.variants import Variants

HEAD = [
    "file",
    "test accuracy, %",
    "kB",
    "kB packed",
    "smaller: file / packed",
    "faster (10th–90th percentile)",
]


class Done(msgspec.Struct, frozen=True):
    """What was asked for, where it lies, and what came out."""

    recipe: recipe.Recipe
    folder: Path
    made: Variants


def pressed(text: str, folder: Path) -> Done:
    """Compress by a recipe's text; what was done before comes from the cache."""
    chosen = recipe.parse(text)
    with drawn(quietly=False) as progress:
        made = compress(chosen, folder, progress=progress)
    for one in made.variants:
        if one.kept_steps < len(one.steps) or one.file is None:
            raise SystemExit(f"{one.name}.{one.format}: {one.verdict}: {one.reason}")
    return Done(chosen, folder, made)


def rows(done: Done, format_: str) -> list[list[str]]:
    """Time the files of one format in turns, and return a row for each; the first is the original."""
    kept = [one for one in done.made.variants if one.format == format_]
    data = Data(resolve_callable(done.recipe.data.source, key="data.source"), key="timing")
    sample = data.split("calibrate").x[:1]
    timed = timing.interleaved([(format_, (done.folder / str(one.file)).read_bytes()) for one in kept], sample)
    first = kept[0].file_bytes
    found = []
    for one, took in zip(kept, timed, strict=True):
        assert first is not None
        assert one.file_bytes is not None
        assert one.wire_bytes is not None
        assert one.test_accuracy is not None
        found.append(
            [
                f"{one.name}.{format_}",
                f"{100 * one.test_accuracy:.2f}",
                f"{one.file_bytes / 1000:,.0f}",
                f"{one.wire_bytes / 1000:,.0f}",
                f"{first / one.file_bytes:.1f} × / {first / one.wire_bytes:.1f} ×",
                took.faster(timed[0]),
            ]
        )
    return found
