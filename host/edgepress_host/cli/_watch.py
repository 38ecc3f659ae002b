"""Watching trials: a live table on a terminal, one line per change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from edgepress_host import units
from edgepress_host.cli._shared import console, safe, say, table

if TYPE_CHECKING:
    from rich.table import Table

    from edgepress_host.client.client import Client
    from edgepress_host.server.views import DeviceView, MeasurementView, TrialView

ENDED = frozenset({"done", "failed", "cancelled"})
JOIN_S = 10.0
"""How long a controller that has just started is given for its devices to come back to it."""

AWAY_S = 15.0
"""How long a device may be away before it counts as offline: a broker that restarts takes all of them along."""


def wait_for_devices(client: Client, wanted: Iterable[str]) -> None:
    """Give devices the time to connect to a controller that has only just started."""
    names = set(wanted)
    started = client.health().started_unix_s
    seq = client.last_seq()
    while names - {view.id for view in client.devices() if view.online}:
        left = started + JOIN_S - time.time()
        if left <= 0:
            return
        seq = client.changes(seq, left).seq


class Absent:
    """Who has been away for so long that nobody waits for it any more.

    A device that is there and obeys nothing of what this controller wants, which a wrong key brings about, is away.
    """

    def __init__(self) -> None:
        self._seen_s: dict[str, float] = {}

    def among(self, devices: Iterable[DeviceView]) -> set[str]:
        """Names of those who are away, as the devices stand now."""
        now_s, away = time.monotonic(), set()
        for view in devices:
            if view.online and not (view.refused and view.reported_generation < view.generation):
                self._seen_s[view.id] = now_s
            elif now_s - self._seen_s.get(view.id, -AWAY_S) >= AWAY_S:
                away.add(view.id)
        return away


def absence(client: Client, names: Iterable[str]) -> str:
    """Say why nobody waits for these devices: `a is offline; b refuses this controller: …`."""
    views = {view.id: view for view in client.devices()}
    said = []
    for name in sorted(names):
        view = views.get(name)
        if view is not None and view.online and view.refused:
            said.append(f"{name} refuses this controller: {view.refused}")
        else:
            said.append(f"{name} is {'offline' if view else 'removed'}")
    return "; ".join(said)


def watch(
    client: Client, queued: Sequence[TrialView], *, keep: bool
) -> tuple[list[TrialView], dict[str, MeasurementView]]:
    """Follow trials until all have ended but those of absent devices; `keep` leaves the live table standing.

    Returns the trials as they stand then, and measurements by trial.
    """
    order = {trial.id: trial for trial in queued}
    measured: dict[str, MeasurementView] = {}
    told: dict[str, str] = {}
    absent = Absent()
    screen = console(stderr=True)
    with ExitStack() as stack:
        live = None
        if screen.is_terminal:
            from rich.live import Live

            live = stack.enter_context(Live(console=screen, auto_refresh=False, transient=not keep))

        def look() -> bool:
            order.update({trial.id: trial for trial in client.trials() if trial.id in order})
            for trial in order.values():
                if trial.state == "done" and trial.id not in measured:
                    found = client.measurements(manifest=trial.manifest, device=trial.device)
                    measured.update({view.trial: view for view in found if view.trial == trial.id})
            if live is not None:
                live.update(_screenful(list(order.values()), measured, screen.height), refresh=True)
            else:
                _tell(order.values(), measured, told)
            away = absent.among(client.devices())
            return all(trial.state in ENDED or trial.device in away for trial in order.values())

        client.follow(look, tick_s=AWAY_S / 3)
        if live is not None and keep:
            live.update(trial_table(order.values(), measured))
    return list(order.values()), measured


def _screenful(trials: Sequence[TrialView], measured: dict[str, MeasurementView], height: int) -> Table:
    """As much as a terminal holds: what goes on now, then what ended last, then what waits."""
    ended = sorted((one for one in trials if one.state in ENDED), key=lambda one: -(one.ended_unix_s or 0.0))
    open_ones = [one for one in trials if one.state not in ENDED]
    active = [one for one in open_ones if one.state != "queued"]
    queued = [one for one in open_ones if one.state == "queued"]
    made = trial_table([*active, *ended, *queued][: max(height - 6, 3)], measured)
    made.caption = f"{len(ended)} of {len(trials)} trials ended"
    made.caption_justify = "left"
    return made


def trial_table(trials: Iterable[TrialView], measured: dict[str, MeasurementView]) -> Table:
    """Trials with what they measured."""
    numbers = ("p50", "p95", "peak memory", "accuracy", "energy")
    shown = table(("device", "variant", "format", "state", *numbers, ""), right=numbers)
    for trial in trials:
        shown.add_row(safe(trial.device), safe(trial.variant), trial.format, *_cells(trial, measured.get(trial.id)))
    return shown


def _cells(trial: TrialView, view: MeasurementView | None) -> tuple[str, ...]:
    if view is None:
        colour = {"failed": "red", "measuring": "cyan"}.get(trial.state, "dim")
        return (f"[{colour}]{trial.state}[/]", "", "", "", "", "", safe(trial.detail))
    found = view.measurement
    marks = [
        word
        for word, is_so in (
            ("unstable", found.latency.unstable),
            ("disturbed", found.quiet is not None and bool(found.quiet.disturbed)),
            ("simulated", found.simulated),
            ("emulated", found.emulated),
        )
        if is_so
    ]
    return (
        "[green]done[/]",
        units.ms(found.latency.p50_ms),
        units.ms(found.latency.p95_ms),
        units.size(found.memory.peak_bytes),
        units.score(found.accuracy.value) if found.accuracy else units.BLANK,
        units.mj(found.energy.mj_per_inference) if found.energy else units.BLANK,
        ", ".join(marks),
    )


def _tell(trials: Iterable[TrialView], measured: dict[str, MeasurementView], told: dict[str, str]) -> None:
    """Say which trials began to measure, and which ended, since the last time."""
    for trial in trials:
        if told.get(trial.id) == trial.state or (trial.state != "measuring" and trial.state not in ENDED):
            continue
        told[trial.id] = trial.state
        view = measured.get(trial.id)
        rest = f" {trial.detail}" if trial.state in ENDED and trial.detail else ""
        if view is not None:
            latency = view.measurement.latency
            rest = f" p50 {units.ms(latency.p50_ms)}, p95 {units.ms(latency.p95_ms)}"
        say(f"{trial.device}  {trial.variant}:{trial.format}  {trial.state}{rest}")
