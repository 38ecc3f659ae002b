"""MAIN PATH of a trial: wait for the machine, look at the board, load, check, warm up, time, weigh, read the power.

What would disturb the headline, or be disturbed by it, is measured after it, in a process of its own (`apart`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.manifest import Manifest
from edgepress_protocol.measurement import Accuracy, Energy, Latency, Measurement, Paced, Quiet, Usage
from edgepress_protocol.messages import Failed, Measured, ProfileOptions, Trial

from edgepress_agent import sensors
from edgepress_agent.board.emulation import emulated
from edgepress_agent.measure import apart, conditions, energy, quiet, summary
from edgepress_agent.measure.needs import unmet
from edgepress_agent.measure.pipe import (
    CheckGolden,
    Evaluate,
    Evaluated,
    GoldenChecked,
    Open,
    Opened,
    Timed,
    TimedPaced,
    TimePaced,
    TimeWindows,
    Warm,
    WarmUp,
    Work,
    Worked,
)
from edgepress_agent.measure.turns import turn
from edgepress_agent.measure.worker import Ended, Worker

OnPhase = Callable[[str, str], None]
Says = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A trial whose files are here and verified."""

    trial: Trial
    manifest: Manifest
    model: Path
    evaluation: Path | None
    golden: Path | None
    work_dir: Path

    def open(self) -> Open:
        """Return what the child is asked first."""
        options = self.trial.options
        return Open(
            manifest=self.manifest,
            model=str(self.model.resolve()),
            threads=options.threads,
            batch=options.batch,
            golden=None if self.golden is None else str(self.golden.resolve()),
            evaluation=None if self.evaluation is None else str(self.evaluation.resolve()),
            memory_limit_bytes=options.memory_limit_bytes,
            providers=options.providers,
        )


@dataclass(frozen=True)
class Place:
    """What every part of a trial is given: the board's sensors, where they are read, and whom to tell."""

    board: Sequence[sensors.Source]
    root: Path
    say: Says


@dataclass(frozen=True)
class Headline:
    """What was measured of a freshly loaded model, up to its latency in a tight loop."""

    opened: Opened
    golden: GoldenChecked | None
    warm: Warm
    latency: Latency
    before: conditions.Snapshot
    quiet: Quiet
    notes: tuple[str, ...]


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
            return await asyncio.wait_for(_measure(job, options, place), options.timeout_s + options.soak_s)
    except Ended as end:
        return end.outcome
    except asyncio.TimeoutError:
        return Failed("timeout", f"not done after {options.timeout_s:g} s, and stopped")
    except (OSError, Unavailable) as error:
        return Failed("error", f"the board would not measure: {error}")


async def _measure(job: Job, options: ProfileOptions, place: Place) -> Measured:
    place.say("looking whether the board is quiet")
    before = await quiet.check(place.board, place.root, options.window_s)
    async with Worker(job.work_dir) as child:
        head = await _headline(child, job, place, before)
        return await _complete(child, job, place, head)


async def _headline(child: Worker, job: Job, place: Place, before: quiet.Check) -> Headline:
    """Load the model, and time it; once more where that was disturbed, or where the windows spread."""
    options = job.trial.options
    place.say("loading")
    opened = await child.ask(job.open(), Opened)
    golden = await _check_golden(child, job)
    place.say("warming up")
    warm = await child.ask(WarmUp(options.warmup_runs, options.warmup_s), Warm)
    place.say(f"timing {options.windows} windows of {options.window_s:g} s")
    latency, seen = await _time(child, options, place, before)
    notes: tuple[str, ...] = ()
    if seen.disturbed:
        notes = (f"timed twice: the first time was disturbed ({'; '.join(seen.disturbed)}); the second stands",)
        place.say(f"once more: {seen.disturbed[0]}")
        again = await quiet.check(place.board, place.root, options.window_s)
        latency, seen = await _time(child, options, place, again, attempts=2)
    elif latency.unstable:
        place.say(f"once more: the windows spread by {latency.spread:.0%}")
        first, (second, seen) = latency, await _time(child, options, place, before, attempts=2)
        spreads = f"{first.spread:.1%}, then {second.spread:.1%}"
        notes = (f"timed twice: the windows spread by {spreads}; the steadier one stands",)
        latency = min(first, second, key=lambda each: each.spread)
    return Headline(opened, golden, warm, latency, before.last, seen, notes)


async def _time(
    child: Worker, options: ProfileOptions, place: Place, before: quiet.Check, attempts: int = 1
) -> tuple[Latency, Quiet]:
    """Time the windows, and say how quiet the board was meanwhile."""
    others = quiet.Others(place.root)
    timed = await child.ask(TimeWindows(options.windows, options.window_s), Timed)
    busy_cores = others.busy_cores(timed.cpu_ns)
    after = await asyncio.to_thread(conditions.read, place.board, place.root)
    return summary.latency(timed), quiet.judge(before, after, busy_cores, attempts=attempts)


async def _complete(child: Worker, job: Job, place: Place, head: Headline) -> Measured:
    """Measure all that comes after the headline, first in the same process, then in others."""
    options = job.trial.options
    cost = await _usage(child, options, place)
    paced = await _paced(child, options, place)
    net, power_lost = await _energy(child, options, place)
    accuracy = await _evaluate(child, job, place)
    asked, work_dir = job.open(), job.work_dir
    sweep = await apart.sweep(work_dir, asked, options, place.say)
    layers, no_layers = await apart.layers(work_dir, asked, place.say) if options.layers else ((), ())
    soak = None
    if options.soak_s:
        soak = await apart.soak(work_dir, asked, options, place.board, place.root, place.say)
    after = await asyncio.to_thread(conditions.read, place.board, place.root)
    return Measured(
        Measurement(
            runtime=head.opened.runtime,
            load_ms=head.opened.load_ms,
            first_ms=head.opened.first_ms,
            warmup_runs=head.warm.runs,
            latency=head.latency,
            memory=head.warm.memory,
            threads=options.threads,
            batch=head.opened.batch,
            before=head.before.conditions,
            after=after.conditions,
            accuracy=accuracy,
            energy=net,
            golden_max_error=None if head.golden is None else head.golden.max_error,
            simulated=place.root != Path("/"),
            emulated=emulated(),
            notes=(
                *_notes(options, head.opened),
                *head.notes,
                *power_lost,
                *no_layers,
                *(f"the model's process was not confined by {guard}" for guard in child.guards.off),
                *(f"no readings of {trouble}" for trouble in sensors.look(place.root).troubles),
                *conditions.notes(head.before, after),
            ),
            paced=paced,
            usage=cost,
            sweep=sweep,
            layers=layers,
            soak=soak,
            quiet=head.quiet,
            providers=head.opened.providers,
            guards=(*child.guards.on, *head.opened.limits),
        )
    )


async def _check_golden(child: Worker, job: Job) -> GoldenChecked | None:
    if job.manifest.golden is None or job.golden is None:
        return None
    checked = await child.ask(CheckGolden(), GoldenChecked)
    if checked.wrong:
        # Fast and wrong is no measurement.
        raise Ended(Failed("golden", checked.wrong))
    return checked


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
        return conditions.throttled(begun, await asyncio.to_thread(conditions.read, place.board, place.root))

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
