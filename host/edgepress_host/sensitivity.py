"""Layer-wise sensitivity: one technique on one layer at a time, at each of its levels, measured as variants are.

Every cell is a real step and a real file in the runtime that will run it; both come from the cache that compress
shares, so a second look costs nothing.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from edgepress_protocol.errors import UsageError
from edgepress_protocol.printing import indented
from torch import nn

from edgepress_host import technique
from edgepress_host.compress import Progress
from edgepress_host.press.loading import did_you_mean
from edgepress_host.press.store import disk, write_atomically
from edgepress_host.press.strict import convert
from edgepress_host.press.training import one_thread
from edgepress_host.press.workshop import Pressed, Workshop
from edgepress_host.recipe import Recipe
from edgepress_host.technique import StepFailed, Technique
from edgepress_host.variants import Measured

FILE_NAME = "sensitivity.json"
SCHEMA = 1


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What to try: a technique's option that a layer may have of its own, its levels, and other options."""

    technique: str
    option: str
    levels: tuple[float, ...]
    settings: dict[str, Any] = msgspec.field(default_factory=dict)


SWEEPS: Mapping[str, Sweep] = {
    "prune": Sweep(technique="prune", option="ratio", levels=(0.25, 0.5, 0.75, 0.9), settings={"kind": "magnitude"}),
    "quantize": Sweep(technique="quantize", option="bits", levels=(8, 4, 2), settings={"mode": "weight_only"}),
    "low_rank": Sweep(technique="low_rank", option="energy", levels=(0.95, 0.9, 0.8, 0.6), settings={"energy": 0.9}),
    "cluster": Sweep(technique="cluster", option="bits", levels=(4, 3, 2, 1)),
}
"""What is tried where nobody says otherwise, from mild to hard."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One layer at one level. Where the step failed, nothing was measured, and `reason` tells why."""

    layer: str
    level: float
    accuracy: float | None
    drop: float | None
    """Accuracy lost against the original."""

    wire_bytes: int | None
    reason: str = ""


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """The whole analysis, `sensitivity.json`; accuracy is on the validate split, in the format's runtime."""

    schema: int = SCHEMA
    model: str
    format: str
    metric: str
    samples: int
    sweep: Sweep
    accuracy: float
    wire_bytes: int
    layers: tuple[str, ...]
    cells: tuple[Cell, ...]

    def row(self, layer: str) -> list[Cell]:
        """Return the cells of one layer, in the order of the levels."""
        return [cell for cell in self.cells if cell.layer == layer]


def analyse(
    recipe: Recipe,
    out: Path,
    sweep: Sweep,
    *,
    layers: tuple[str, ...] = ("*",),
    format_: str = "onnx",
    progress: Callable[[Progress], None] = lambda _: None,
) -> Sensitivity:
    """Measure every layer that matches one of the patterns, and write `out/sensitivity.json`.

    Raises UsageError (recipe, model, option or pattern cannot be used) and Unavailable (the disk).
    """
    with disk(out):
        out.mkdir(parents=True, exist_ok=True)
    now = Progress(done=0, total=0, doing="the original")

    def say(what: str) -> None:
        progress(msgspec.structs.replace(now, doing=f"{now.doing}: {what}"))

    with one_thread():
        shop = Workshop(recipe, out, say)
        try:
            original = shop.start(format_)
            measured = shop.measure(format_, original)
        except StepFailed as error:
            raise UsageError(f"the original does not work in this format: {error}") from error
        if original.module is None:
            raise UsageError("sensitivity is measured layer by layer of a torch module, and this model is a file")
        chosen = _chosen(original.module, layers)
        cells: list[Cell] = []
        for layer in chosen:
            for level in sweep.levels:
                total = len(chosen) * len(sweep.levels)
                now = Progress(done=len(cells), total=total, doing=f"{layer} at {level:g}")
                progress(now)
                cells.append(_cell(shop, original, measured, format_, step_for(sweep, layer, level), (layer, level)))
    found = Sensitivity(
        model=recipe.model.name,
        format=format_,
        metric=recipe.metric,
        samples=len(shop.data.split("validate").x),
        sweep=sweep,
        accuracy=measured.accuracy,
        wire_bytes=measured.wire_bytes,
        layers=chosen,
        cells=tuple(cells),
    )
    write_atomically(out / FILE_NAME, indented(found).encode() + b"\n")
    return found


def step_for(sweep: Sweep, layer: str, level: float) -> Technique:
    """Return the step that changes one layer and skips all others. Raises UsageError."""
    known = technique.found()
    if sweep.technique not in known:
        raise UsageError(
            f"technique: expected one of {', '.join(known)}, got {sweep.technique!r}"
            f"{did_you_mean(sweep.technique, list(known))}"
        )
    value = int(level) if float(level).is_integer() else level
    # A layer's name may hold what a pattern gives a meaning to.
    own = {_literally(layer): {sweep.option: value, "skip": False}}
    options = {**sweep.settings, "skip": True, "layers": own}
    step = convert(options, known[sweep.technique], where=sweep.technique)
    step.check()
    return step


def _chosen(model: nn.Module, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Names of layers that hold a weight matrix and match, in the model's order. Raises UsageError."""
    held = [
        name
        for name, layer in model.named_modules()
        if any(weight.ndim > 1 for weight in layer.parameters(recurse=False))
    ]
    for pattern in patterns:
        if not fnmatch.filter(held, pattern):
            raise UsageError(f"layer {pattern!r}: matches no layer{did_you_mean(pattern, held)}")
    return tuple(name for name in held if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def _cell(
    shop: Workshop, original: Pressed, measured: Measured, format_: str, step: Technique, place: tuple[str, float]
) -> Cell:
    layer, level = place
    try:
        after = shop.measure(format_, shop.step(step, original, format_).pressed)
    except (StepFailed, UsageError) as error:
        # A technique that has nothing to do with this kind of layer says so; the others are still worth measuring.
        return Cell(layer=layer, level=level, accuracy=None, drop=None, wire_bytes=None, reason=str(error))
    return Cell(
        layer=layer,
        level=level,
        accuracy=after.accuracy,
        drop=measured.accuracy - after.accuracy,
        wire_bytes=after.wire_bytes,
    )


def _literally(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
