"""What is measured in runs of its own, each in a fresh process, so that it never mixes with the headline."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from edgepress_protocol.measurement import AtThreads, Layer, Soak
from edgepress_protocol.messages import ProfileOptions

from edgepress_agent.measure import conditions, quiet, summary
from edgepress_agent.measure.job import Place, Says
from edgepress_agent.measure.pipe import Open, Opened, Timed, TimedLayers, TimeLayers, TimeWindows, Warm, WarmUp
from edgepress_agent.measure.worker import Worker

LAYER_RUNS = 50
SLICE_S = 10.0
"""Long loads are timed in slices, between which the board's temperature and clock are read."""

LEAST_SLICES = 4


async def warm(child: Worker, asked: Open, options: ProfileOptions) -> None:
    """Open a model in a fresh child, and warm it up."""
    await child.ask(asked, Opened)
    await child.ask(WarmUp(options.warmup_runs, options.warmup_s), Warm)


async def sweep(work_dir: Path, asked: Open, options: ProfileOptions, say: Says) -> tuple[AtThreads, ...]:
    """Time the same windows with other numbers of threads.

    Raises:
        Ended: a child died.
    """
    points = []
    for threads in options.sweep_threads:
        say(f"timing with {threads} threads")
        async with Worker(work_dir) as child:
            await warm(child, msgspec.structs.replace(asked, threads=threads), options)
            timed = await child.ask(TimeWindows(options.windows, options.window_s), Timed)
        points.append(summary.at_threads(threads, timed))
    return tuple(points)


async def layers(work_dir: Path, asked: Open, say: Says) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Time the layers, or say why that cannot be had.

    Raises:
        Ended: the child died.
    """
    say("timing layers")
    async with Worker(work_dir) as child:
        await child.ask(asked, Opened)
        timed = await child.ask(TimeLayers(LAYER_RUNS), TimedLayers)
    return timed.layers, ((timed.why,) if timed.why else ())


def strayed(layers: Sequence[Layer], asked: Sequence[str]) -> tuple[str, ...]:
    """Say which share of a model's layers ran elsewhere than where it was asked to; empty where none did. Pure.

    A runtime may start a provider, name it among those of the model, and run every layer on the CPU.
    """
    told = [layer.provider for layer in layers if layer.provider]
    away = Counter(provider for provider in told if provider not in asked)
    if not asked or not away:
        return ()
    places = ", ".join(f"{count} on {provider}" for provider, count in away.most_common())
    return (f"of {len(told)} layers, {len(told) - away.total()} ran on {' or '.join(asked)}, {places}",)


async def soak(work_dir: Path, asked: Open, options: ProfileOptions, place: Place, rest: conditions.Snapshot) -> Soak:
    """Load the board for long, without a pause but for the reading of its state.

    What came before has warmed it: first it cools to about what it was at `rest`.

    Raises:
        Ended: the child died.
    """
    slice_s = min(SLICE_S, options.soak_s / LEAST_SLICES)
    slices = []
    async with Worker(work_dir) as child:
        await child.ask(asked, Opened)
        before = await quiet.cooled(place.board, place.root, rest, options.window_s, place.say)
        count = round(options.soak_s / slice_s)
        for number in range(1, count + 1):
            place.say(f"long load: {number * slice_s:.0f} of {options.soak_s:.0f} s")
            timed = await child.ask(TimeWindows(1, slice_s), Timed)
            slices.append((timed, await asyncio.to_thread(conditions.read, place.board, place.root)))
    return summary.soak(slices, before)
