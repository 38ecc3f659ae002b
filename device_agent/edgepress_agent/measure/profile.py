"""MAIN PATH of a trial: wait for the machine, look at the board, load, check, warm up, time, weigh, read the power.

What would disturb the headline, or be disturbed by it, is measured after it, in a process of its own (`apart`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.measurement import Accuracy, AtThreads, Energy, Layer, Measurement, Paced, Soak, Usage
from edgepress_protocol.messages import Failed, Measured, ProfileOptions

from edgepress_agent import sensors
from edgepress_agent.board.emulation import emulated
from edgepress_agent.measure import apart, conditions, energy, headline, quiet, summary
from edgepress_agent.measure.job import Job, Place
from edgepress_agent.measure.needs import unmet
from edgepress_agent.measure.pipe import (
    Confined,
    Evaluate,
    Evaluated,
    Open,
    Opened,
    TimedPaced,
    TimePaced,
    Work,
    Worked,
)
from edgepress_agent.measure.turns import turn
from edgepress_agent.measure.worker import Ended, Worker

OnPhase = Callable[[str, str], None]

LOOK_S = 120.0
"""How long it may take to see where layers run; TensorRT builds its engine once more for it."""


async def profile(job: Job, *, root: Path, lock: Path, on_phase: OnPhase) -> Measured | Failed:
    """Measure one variant; every way in which that can end is an outcome.

    `root` is where sensors and conditions are read (`/`, or a recorded tree: then all is marked simulated);
    agents that share `lock` measure one at a time. `on_phase` hears ("waiting" | "measuring", detail).
    """
    reason = unmet(job.manifest)
    if reason:
        return Failed("unsupported", reason)
    options = job.trial.options
    place = Place(sensors.found(root), root, partial(on_phase, "measuring"))
    try:
        async with turn(lock, lambda: on_phase("waiting", "another agent on this machine measures")):
            return await asyncio.wait_for(_measure(job, place), _longest_s(options))
    except Ended as end:
        return end.outcome
    except asyncio.TimeoutError:
        return Failed("timeout", f"not done after {options.timeout_s:g} s, and stopped")
    except (OSError, Unavailable) as error:
        return Failed("error", f"the board would not measure: {error}")


def _longest_s(options: ProfileOptions) -> float:
    """Bound a trial: what the board takes to come to rest, and a long load, come on top of its time."""
    soak_s = options.soak_s + quiet.COOL_S if options.soak_s else 0.0
    return options.timeout_s + headline.MOST_TIMES * quiet.longest_rest_s(options.window_s) + soak_s


@dataclass(frozen=True)
class Own:
    """What was measured in the process of the headline, after it."""

    cost: Usage
    paced: Paced | None
    energy: Energy | None
    accuracy: Accuracy | None
    confined: Confined
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Apart:
    """What was measured in processes of its own, once the headline's had given its memory back."""

    sweep: tuple[AtThreads, ...]
    layers: tuple[Layer, ...]
    soak: Soak | None
    end: conditions.Snapshot
    notes: tuple[str, ...]


async def _measure(job: Job, place: Place) -> Measured:
    async with Worker(job.work_dir) as child:
        head = await headline.measured(child, job, place)
        own = await _own(child, job, place)
    others = await _apart(job, place, head.rest)
    return Measured(_put_together(job, place, head, own, others))


async def _own(child: Worker, job: Job, place: Place) -> Own:
    options = job.trial.options
    cost = await _usage(child, options, place)
    paced = await _paced(child, options, place)
    net, power_lost = await _energy(child, options, place)
    return Own(cost, paced, net, await _evaluate(child, job, place), child.guards, power_lost)


async def _apart(job: Job, place: Place, rest: conditions.Snapshot) -> Apart:
    options, asked = job.trial.options, job.open()
    sweep = await apart.sweep(job.work_dir, asked, options, place.say)
    layers, notes = await _layers(job, asked, place)
    soak = await apart.soak(job.work_dir, asked, options, place, rest) if options.soak_s else None
    end = await asyncio.to_thread(conditions.read, place.board, place.root)
    return Apart(sweep, layers, soak, end, notes)


def _put_together(job: Job, place: Place, head: headline.Headline, own: Own, others: Apart) -> Measurement:
    options, timing = job.trial.options, head.timing
    return Measurement(
        runtime=head.opened.runtime,
        load_ms=head.opened.load_ms,
        first_ms=head.opened.first_ms,
        warmup_runs=head.warm.runs,
        latency=timing.latency,
        memory=head.warm.memory,
        threads=options.threads,
        batch=head.opened.batch,
        before=timing.before.conditions,
        after=timing.after.conditions,
        accuracy=own.accuracy,
        energy=own.energy,
        golden_max_error=None if head.golden is None else head.golden.max_error,
        simulated=place.root != Path("/"),
        emulated=emulated(),
        notes=(
            *_notes(options, head.opened),
            *head.notes,
            *own.notes,
            *others.notes,
            *(f"the model's process was not confined by {guard}" for guard in own.confined.off),
            *(f"no readings of {trouble}" for trouble in sensors.look(place.root).troubles),
            *conditions.notes(timing.before, timing.after, others.end),
        ),
        paced=own.paced,
        usage=own.cost,
        sweep=others.sweep,
        layers=others.layers,
        soak=others.soak,
        quiet=timing.quiet,
        providers=head.opened.providers,
        guards=(*own.confined.on, *head.opened.limits),
    )


async def _usage(child: Worker, options: ProfileOptions, place: Place) -> Usage:
    place.say("counting processor time and page faults")
    return summary.usage(await child.ask(Work(options.window_s), Worked))


async def _paced(child: Worker, options: ProfileOptions, place: Place) -> Paced | None:
    if options.paced_hz == 0:
        return None
    place.say(f"timing at {options.paced_hz:g} Hz")
    timed = await child.ask(TimePaced(options.paced_hz, options.window_s), TimedPaced)
    return summary.paced(timed, options.paced_hz)


async def _energy(child: Worker, options: ProfileOptions, place: Place) -> tuple[Energy | None, tuple[str, ...]]:
    """Measure the energy, or say why it stays blank: a sensor that fails takes nothing else with it."""
    power = sensors.power(place.board) if options.energy else None
    if power is None:
        return None, ()
    begun = await asyncio.to_thread(conditions.read, place.board, place.root)

    async def throttled() -> str:
        now = await asyncio.to_thread(conditions.read, place.board, place.root)
        return conditions.throttled(begun, now) or conditions.throttling(now)

    meter = energy.Meter(power, throttled=throttled)
    try:
        return await energy.measure(
            lambda seconds: child.ask(Work(seconds), Worked), meter, options.window_s, place.say
        ), ()
    except Unavailable as error:
        return None, (f"energy stays blank: {error}",)


async def _evaluate(child: Worker, job: Job, place: Place) -> Accuracy | None:
    evaluation = job.trial.evaluation
    if evaluation is None or job.evaluation is None:
        return None
    place.say(f"evaluating {evaluation.samples} samples")
    evaluated = await child.ask(Evaluate(evaluation), Evaluated)
    return Accuracy(evaluation.metric, evaluated.value, evaluated.samples)


async def _layers(job: Job, asked: Open, place: Place) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Time the layers where that was asked for, and look where they run where another place than the CPU was.

    The look alone costs the trial nothing where it fails: what was measured stands.
    """
    options = job.trial.options
    elsewhere = [provider for provider in options.providers if provider != "cpu"]
    if options.layers:
        layers, trouble = await apart.layers(job.work_dir, asked, place.say)
        return layers, (*trouble, *apart.strayed(layers, elsewhere))
    if not elsewhere:
        return (), ()
    try:
        layers, _ = await asyncio.wait_for(apart.layers(job.work_dir, asked, place.say), LOOK_S)
    except Ended as end:
        return (), (f"where its layers ran is not known: {end}",)
    except asyncio.TimeoutError:
        return (), (f"where its layers ran is not known: not told within {LOOK_S:g} s",)
    return (), apart.strayed(layers, elsewhere)


def _notes(options: ProfileOptions, opened: Opened) -> tuple[str, ...]:
    lines = []
    if opened.batch != options.batch:
        lines.append(f"the file's batch is fixed at {opened.batch}; batch {options.batch} was asked for")
    if options.windows == 1:
        lines.append("one window: whether the latency is stable is not known")
    missing = [provider for provider in options.providers if provider not in opened.providers]
    if missing:
        lines.append(
            f"asked for {', '.join(missing)}, which {opened.runtime.name} could not start here: it ran on"
            f" {', '.join(opened.providers)}"
        )
    return tuple(lines)
