"""Bits of each layer by its measured sensitivity, within a budget of size or of accuracy."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import nn

from edgepress_host.press.sensitivity import outputs_of, scorer, sweep
from edgepress_host.press.structure import digest
from edgepress_host.technique import StepFailed, Workbench
from edgepress_host.techniques.quantize.simulation import Simulation, round_layer

LEVELS = (8, 4, 2)
_TIE = 1e-3
"""Weight of the outputs' relative squared error, which ranks layers that lose no accuracy."""


class _Move(NamedTuple):
    """One layer's next step down, and what it costs for each bit saved."""

    cost: float
    layer: str
    bits: int


def choose(
    model: nn.Module,
    simulation: Simulation,
    bench: Workbench,
    *,
    size: float | None,
    max_drop: float | None,
    pinned: set[str],
) -> dict[str, int]:
    """Return the bits of each layer: all begin at 8, and the least sensitive go down first.

    `size` is a share of the weights' bytes at 8 bits. `max_drop` is accuracy on validate, measured with all layers
    chosen so far together; a step that would lose more is not taken. Raises StepFailed for a size out of reach.
    """
    free = [name for name in simulation.bits if name not in pinned]
    widths = {name: model.get_parameter(f"{name}.weight").numel() for name in simulation.bits}
    costs = _costs(model, simulation, free, bench)
    chosen = {name: LEVELS[0] if name in free else bits for name, bits in simulation.bits.items()}
    whole = LEVELS[0] * sum(widths.values())
    if max_drop is not None:
        chosen = _within_drop(model, simulation.with_bits(chosen), costs, widths, free, bench, max_drop)
    elif size is not None:
        while sum(chosen[name] * widths[name] for name in widths) > size * whole:
            move = _next(chosen, costs, widths, free)
            if move is None:
                least = sum(chosen[name] * widths[name] for name in widths) / whole
                raise StepFailed(
                    f"mixed.size: {size:g} is out of reach; the least that these layers take is {least:.2f}"
                )
            chosen[move.layer] = move.bits
    share = sum(chosen[name] * widths[name] for name in widths) / whole
    listed = ", ".join(f"{name} {bits}" for name, bits in chosen.items())
    bench.note(f"bits by sensitivity, {share:.2f} of the size at 8 bits: {listed}")
    return chosen


def _within_drop(
    model: nn.Module,
    simulation: Simulation,
    costs: Mapping[tuple[str, int], float],
    widths: Mapping[str, int],
    free: list[str],
    bench: Workbench,
    max_drop: float,
) -> dict[str, int]:
    score = scorer(bench.split("validate"), bench.metric, bench.memo)
    least = score(model) - max_drop
    chosen, open_ = dict(simulation.bits), list(free)
    while (move := _next(chosen, costs, widths, open_)) is not None:
        tried = copy.deepcopy(model)
        simulation.with_bits({**chosen, move.layer: move.bits}).put_on_grid(tried)
        if score(tried) >= least:
            chosen[move.layer] = move.bits
        else:
            open_.remove(move.layer)
    return chosen


def _next(
    chosen: Mapping[str, int], costs: Mapping[tuple[str, int], float], widths: Mapping[str, int], free: list[str]
) -> _Move | None:
    """Return the step down that costs the least for each bit that it saves."""
    moves = []
    for name in free:
        lower = [bits for bits in LEVELS if bits < chosen[name]]
        if lower:
            saved = (chosen[name] - lower[0]) * widths[name]
            moves.append(_Move((costs[name, lower[0]] - costs[name, chosen[name]]) / saved, name, lower[0]))
    return min(moves, default=None)


def _costs(model: nn.Module, simulation: Simulation, free: list[str], bench: Workbench) -> dict[tuple[str, int], float]:
    """Return what each layer alone costs at each level: accuracy lost, and a little for what moves the outputs."""
    samples = bench.split("validate")
    score = scorer(samples, bench.metric, bench.memo)
    base, whole_digest = score(model), digest(model)
    moved: dict[tuple[str, int], float] = {}

    @functools.cache
    def exact() -> np.ndarray:
        return outputs_of(model, samples.x)

    def error(changed: nn.Module) -> float:
        power = float(np.mean(np.square(exact()))) or 1.0
        return float(np.mean(np.square(outputs_of(changed, samples.x) - exact()))) / power

    def change(whole: nn.Module, name: str, level: float) -> nn.Module:
        changed = copy.deepcopy(whole)
        round_layer(simulation, changed, name, int(level))
        moved[name, int(level)] = bench.memo(("moved", whole_digest, digest(changed)), lambda: error(changed))
        return changed

    points = sweep(model, dict.fromkeys(free, LEVELS[1:]), change, score, say=bench.say)
    costs = {
        (point.layer, int(point.level)): base - point.accuracy + _TIE * moved[point.layer, int(point.level)]
        for point in points
    }
    return costs | {(name, LEVELS[0]): 0.0 for name in free}
