"""The headline of a trial: a freshly loaded model, checked, warm, and timed in a tight loop while the board is quiet.

Timed once more where that was disturbed, or where the windows spread.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
from edgepress_protocol.measurement import Latency, Quiet
from edgepress_protocol.messages import Failed, ProfileOptions

from edgepress_agent.measure import conditions, quiet, summary
from edgepress_agent.measure.job import Job, Place
from edgepress_agent.measure.pipe import CheckGolden, GoldenChecked, Opened, Timed, TimeWindows, Warm, WarmUp
from edgepress_agent.measure.worker import Ended, Worker

MOST_TIMES = 2
"""How often the windows are timed at most, the board at rest before each time."""


@dataclass(frozen=True)
class Timing:
    """All windows, timed once: the latency, how quiet the board was, and its state before and after."""

    latency: Latency
    quiet: Quiet
    before: conditions.Snapshot
    after: conditions.Snapshot


@dataclass(frozen=True)
class Headline:
    """What was measured of a freshly loaded model, up to its latency in a tight loop; `rest` is the board before it."""

    rest: conditions.Snapshot
    opened: Opened
    golden: GoldenChecked | None
    warm: Warm
    timing: Timing
    notes: tuple[str, ...]


async def measured(child: Worker, job: Job, place: Place) -> Headline:
    """Wait until the board is at rest, load the model, and time it.

    Raises:
        Ended: the child died, or its answers are wrong.
    """
    options = job.trial.options
    place.say("looking whether the board is quiet")
    before = await quiet.at_rest(place.board, place.root, options.window_s, place.say)
    place.say("loading")
    opened = await child.ask(job.open(), Opened)
    golden = await _check_golden(child, job)
    place.say("warming up")
    warm = await child.ask(WarmUp(options.warmup_runs, options.warmup_s), Warm)
    place.say(f"timing {options.windows} windows of {options.window_s:g} s")
    timing, notes = await _timed(child, options, place, before)
    return Headline(before.last, opened, golden, warm, timing, notes)


async def _timed(
    child: Worker, options: ProfileOptions, place: Place, before: quiet.Check
) -> tuple[Timing, tuple[str, ...]]:
    first = await _time(child, options, place, before)
    if first.quiet.disturbed:
        place.say(f"once more: {first.quiet.disturbed[0]}")
        # The loop itself has warmed the board: what cools now is not what disturbs.
        again = await quiet.at_rest(place.board, place.root, options.window_s, place.say)
        await child.ask(WarmUp(options.warmup_runs, options.warmup_s), Warm)
        second = await _time(child, options, place, again, attempts=2)
        why = "; ".join(first.quiet.disturbed)
        return second, (f"timed twice: the first time was disturbed ({why}); the second stands",)
    if first.latency.unstable:
        place.say(f"once more: the windows spread by {first.latency.spread:.0%}")
        second = await _time(child, options, place, before, attempts=2)
        return steadier(first, second)
    return first, ()


async def _time(child: Worker, options: ProfileOptions, place: Place, before: quiet.Check, attempts: int = 1) -> Timing:
    others = quiet.Others(place.root)
    timed = await child.ask(TimeWindows(options.windows, options.window_s), Timed)
    busy_cores = others.busy_cores(timed.cpu_ns)
    after = await asyncio.to_thread(conditions.read, place.board, place.root)
    seen = quiet.judge(before, after, busy_cores, attempts=attempts)
    return Timing(summary.latency(timed), seen, before.last, after)


def steadier(first: Timing, second: Timing) -> tuple[Timing, tuple[str, ...]]:
    """Choose between two timings, all of the one or all of the other, and say how they differed. Pure."""
    stands = min(first, second, key=lambda each: (bool(each.quiet.disturbed), each.latency.spread))
    which = "the second was disturbed, and the first" if second.quiet.disturbed else "the steadier one"
    spreads = f"{first.latency.spread:.1%}, then {second.latency.spread:.1%}"
    note = f"timed twice: the windows spread by {spreads}; {which} stands"
    return Timing(stands.latency, msgspec.structs.replace(stands.quiet, attempts=2), stands.before, stands.after), (
        note,
    )


async def _check_golden(child: Worker, job: Job) -> GoldenChecked | None:
    if job.manifest.golden is None or job.golden is None:
        return None
    checked = await child.ask(CheckGolden(), GoldenChecked)
    if checked.wrong:
        # Fast and wrong is no measurement.
        raise Ended(Failed("golden", checked.wrong))
    return checked
