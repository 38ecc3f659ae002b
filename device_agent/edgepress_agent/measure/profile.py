"""MAIN PATH of a trial: wait for the machine, load, check, warm up, time, weigh, evaluate, and read the power."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from edgepress_protocol.errors import Unavailable
from edgepress_protocol.manifest import Manifest
from edgepress_protocol.measurement import Accuracy, Energy, Latency, Measurement
from edgepress_protocol.messages import Failed, Measured, ProfileOptions, Trial

from edgepress_agent import sensors
from edgepress_agent.board.emulation import emulated
from edgepress_agent.measure import conditions, energy
from edgepress_agent.measure.needs import unmet
from edgepress_agent.measure.pipe import (
    CheckGolden,
    Evaluate,
    Evaluated,
    GoldenChecked,
    Open,
    Opened,
    Timed,
    TimeWindows,
    Warm,
    WarmUp,
)
from edgepress_agent.measure.turns import turn
from edgepress_agent.measure.worker import Ended, Worker

UNSTABLE = 0.05
"""Windows whose medians spread by more than this share of their median are measured once more, then marked."""

OnPhase = Callable[[str, str], None]


@dataclass(frozen=True)
class Job:
    """A trial whose files are here and verified."""

    trial: Trial
    manifest: Manifest
    model: Path
    evaluation: Path | None
    golden: Path | None
    work_dir: Path


async def profile(job: Job, *, root: Path, lock: Path, on_phase: OnPhase) -> Measured | Failed:
    """Measure one variant; every way in which that can end is an outcome.

    `root` is where sensors and conditions are read (`/`, or a recorded tree: then all is marked simulated);
    agents that share `lock` measure one at a time. `on_phase` hears ("waiting" | "measuring", detail).
    """
    reason = unmet(job.manifest)
    if reason:
        return Failed("unsupported", reason)
    options = job.trial.options
    try:
        async with turn(lock, lambda: on_phase("waiting", "another agent on this machine measures")):
            return await asyncio.wait_for(_measure(job, options, root, on_phase), options.timeout_s)
    except Ended as end:
        return end.outcome
    except asyncio.TimeoutError:
        return Failed("timeout", f"not done after {options.timeout_s:g} s, and stopped")
    except (OSError, Unavailable) as error:
        return Failed("error", f"the board would not measure: {error}")


async def _measure(job: Job, options: ProfileOptions, root: Path, on_phase: OnPhase) -> Measured:
    board = sensors.found(root)
    before = await asyncio.to_thread(conditions.read, board, root)
    async with Worker(job.work_dir) as child:
        on_phase("measuring", "loading")
        opened = await child.ask(_open(job), Opened)
        golden = await _check_golden(child, job)
        on_phase("measuring", "warming up")
        warm = await child.ask(WarmUp(options.warmup_runs, options.warmup_s), Warm)
        on_phase("measuring", f"timing {options.windows} windows of {options.window_s:g} s")
        latency, timing = await _time(child, options, on_phase)
        net, power_lost = await _energy(child, sensors.power(board) if options.energy else None, options, on_phase)
        accuracy = await _evaluate(child, job, on_phase)
    after = await asyncio.to_thread(conditions.read, board, root)
    return Measured(
        Measurement(
            runtime=opened.runtime,
            load_ms=opened.load_ms,
            first_ms=opened.first_ms,
            warmup_runs=warm.runs,
            latency=latency,
            memory=warm.memory,
            threads=options.threads,
            batch=opened.batch,
            before=before.conditions,
            after=after.conditions,
            accuracy=accuracy,
            energy=net,
            golden_max_error=None if golden is None else golden.max_error,
            simulated=root != Path("/"),
            emulated=emulated(),
            notes=(
                *_notes(options, opened),
                *timing,
                *power_lost,
                *(f"no readings of {trouble}" for trouble in sensors.look(root).troubles),
                *conditions.notes(before, after),
            ),
        )
    )


def _open(job: Job) -> Open:
    options = job.trial.options
    return Open(
        manifest=job.manifest,
        model=str(job.model.resolve()),
        threads=options.threads,
        batch=options.batch,
        golden=None if job.golden is None else str(job.golden.resolve()),
        evaluation=None if job.evaluation is None else str(job.evaluation.resolve()),
        memory_limit_bytes=options.memory_limit_bytes,
    )


async def _check_golden(child: Worker, job: Job) -> GoldenChecked | None:
    if job.manifest.golden is None or job.golden is None:
        return None
    checked = await child.ask(CheckGolden(), GoldenChecked)
    if checked.wrong:
        # Fast and wrong is no measurement.
        raise Ended(Failed("golden", checked.wrong))
    return checked


async def _time(child: Worker, options: ProfileOptions, on_phase: OnPhase) -> tuple[Latency, tuple[str, ...]]:
    """Time the windows, once more where they spread; return the steadier timing, and a line that says so."""
    question = TimeWindows(options.windows, options.window_s)
    first = summarise(await child.ask(question, Timed))
    if not first.unstable:
        return first, ()
    on_phase("measuring", f"once more: the windows spread by {first.spread:.0%}")
    second = summarise(await child.ask(question, Timed))
    line = f"timed twice: the windows spread by {first.spread:.1%}, then {second.spread:.1%}; the steadier one stands"
    return min(first, second, key=lambda each: each.spread), (line,)


async def _energy(
    child: Worker, power: sensors.Source | None, options: ProfileOptions, on_phase: OnPhase
) -> tuple[Energy | None, tuple[str, ...]]:
    """Measure the energy, or say why it stays blank: a sensor that fails takes nothing else with it."""
    if power is None:
        return None, ()
    try:
        return await energy.measure(child, power, options.window_s, lambda text: on_phase("measuring", text)), ()
    except Unavailable as error:
        return None, (f"energy stays blank: {error}",)


def summarise(timed: Timed) -> Latency:
    """Headline and percentiles, as `Latency` defines them."""
    medians = [window.p50_ms for window in timed.windows]
    middle = median(medians)
    high, slowest_ms = timed.histogram.percentile_ms, timed.max_ns / 1e6
    spread = (max(medians) - min(medians)) / middle if middle > 0 else 0.0
    return Latency(
        p50_ms=middle,
        # The middle of a bucket may lie above its slowest run.
        p90_ms=min(high(90), slowest_ms),
        p95_ms=min(high(95), slowest_ms),
        p99_ms=min(high(99), slowest_ms),
        min_ms=timed.min_ns / 1e6,
        max_ms=slowest_ms,
        runs=timed.histogram.total,
        spread=spread,
        unstable=spread > UNSTABLE,
        windows=timed.windows,
        histogram=timed.histogram,
    )


async def _evaluate(child: Worker, job: Job, on_phase: OnPhase) -> Accuracy | None:
    evaluation = job.trial.evaluation
    if evaluation is None or job.evaluation is None:
        return None
    on_phase("measuring", f"evaluating {evaluation.samples} samples")
    evaluated = await child.ask(Evaluate(evaluation), Evaluated)
    return Accuracy(evaluation.metric, evaluated.value, evaluated.samples)


def _notes(options: ProfileOptions, opened: Opened) -> tuple[str, ...]:
    lines = []
    if opened.batch != options.batch:
        lines.append(f"the file's batch is fixed at {opened.batch}; batch {options.batch} was asked for")
    if options.windows == 1:
        lines.append("one window: whether the latency is stable is not known")
    return tuple(lines)
