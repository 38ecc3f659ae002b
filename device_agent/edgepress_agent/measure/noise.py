"""The noise floor of a board: one model against itself, in two processes whose windows alternate (an A/A control).

What two variants differ by must be more than this to mean anything here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from edgepress_protocol.messages import ProfileOptions

from edgepress_agent.measure import apart
from edgepress_agent.measure.pipe import Open, Timed, TimeWindows
from edgepress_agent.measure.worker import Worker

PAIRS = 24
WINDOW_S = 1.0
"""A pair of windows is short, so that a slow change of the board meets both alike."""


@dataclass(frozen=True)
class Floor:
    """Ratios of two medians of one model, of adjacent windows: where single ones lie, and their median.

    `low` and `high` bound nine of ten single ratios, `median_low` and `median_high` the median with 95 % confidence.
    """

    pairs: int
    window_s: float
    low: float
    high: float
    median: float
    median_low: float
    median_high: float


async def floor(
    work_dir: Path, asked: Open, options: ProfileOptions, say: Callable[[str], None], pairs: int = PAIRS
) -> Floor:
    """Time windows of the same model in two processes in turn; which one begins alternates too.

    Raises:
        Ended: a child died.
    """
    window_s = min(WINDOW_S, options.window_s)
    ratios = []
    async with Worker(work_dir / "a") as a, Worker(work_dir / "b") as b:
        for child in (a, b):
            await apart.warm(child, asked, options)
        for number in range(1, pairs + 1):
            say(f"against itself: {number} of {pairs}")
            p50_ms = {}
            for child in (a, b) if number % 2 else (b, a):
                timed = await child.ask(TimeWindows(1, window_s), Timed)
                p50_ms[child] = timed.windows[0].p50_ms
            ratios.append(p50_ms[a] / p50_ms[b])
    return of_ratios(ratios, window_s)


def of_ratios(ratios: Sequence[float], window_s: float) -> Floor:
    """Summarise the pairs; the interval of the median is by order statistics, for at least six pairs.

    >>> found = of_ratios([0.9, 0.95, 1.0, 1.0, 1.05, 1.1], 1.0)
    >>> (found.low, found.median, found.high)
    (0.9, 1.0, 1.1)
    """
    ordered = sorted(ratios)
    count = len(ordered)
    # Ranks whose binomial tail is 2.5 % at most, by the normal approximation with continuity.
    cut = max(0, int((count - 1.96 * count**0.5) / 2))
    edge = count // 20
    return Floor(
        pairs=count,
        window_s=window_s,
        low=ordered[edge],
        high=ordered[-1 - edge],
        median=median(ordered),
        median_low=ordered[max(0, cut - 1)],
        median_high=ordered[min(count - 1, count - cut)],
    )
