"""The report: one HTML page that needs no network, of what was measured, what was chosen, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from edgepress_protocol.measurement import Board

from edgepress_host import units
from edgepress_host.choice import facts, figures, gains, naming
from edgepress_host.choice.budget import Budget
from edgepress_host.choice.choices import SavedChoice
from edgepress_host.choice.figures import ORIGINAL, Figures
from edgepress_host.choice.select import Choice, Outcome, pick
from edgepress_host.reporting import plot
from edgepress_host.reporting.plot import Axis, Point
from edgepress_host.server.views import DeviceView, ManifestView, MeasurementView, TrialView

MEGA = 1e6
TIMES = "\N{MULTIPLICATION SIGN}"


class Known(msgspec.Struct, frozen=True):
    """All that the report rests on, as the controller knows it."""

    manifests: Sequence[ManifestView]
    measurements: Sequence[MeasurementView]
    trials: Sequence[TrialView]
    devices: Sequence[DeviceView]


class Row(msgspec.Struct, frozen=True):
    """One artifact measured on one device."""

    number: int
    manifest: ManifestView
    outcome: Outcome
    view: MeasurementView
    figures: Figures

    @property
    def name(self) -> str:
        """`variant:format`."""
        return naming.name_of(self.manifest)


class Section(msgspec.Struct, frozen=True):
    """One device: its board, two plots, its rows, and what failed on it."""

    device: str
    board: Board | None
    latency_plot: str
    size_plot: str
    rows: tuple[Row, ...]
    failures: tuple[tuple[str, str], ...]
    left_out: int


def render(known: Known, made: SavedChoice, now_unix_s: float) -> str:
    """Return the page. Numbers that were not measured stay blank."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgepress_host.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ms=_blank(units.ms), size=_blank(units.size), percent=_blank(units.percent), score=_blank(units.score),
        signed=_blank(partial(units.percent, signed=True)), mj=_blank(units.mj), celsius=_blank(units.celsius),
        count=_blank(units.count), mhz=_blank(_mhz), times=_blank(_times), when=_when, budget=_budget,
        macs=_blank(_macs), steps=_steps,
    )  # fmt: skip
    chosen_from = set(made.manifests.values())
    wanted = [one for one in known.manifests if one.manifest in chosen_from]
    numbers = {one.manifest: number for number, one in enumerate(wanted, start=1)}
    return environment.get_template("report.html").render(
        now=now_unix_s,
        made=made,
        newer=_newer(known, made, chosen_from) if made.choices else 0,
        models=sorted({str(one.stats.get("source", one.variant)) for one in wanted}),
        choices=[(choice, gains.of(choice)) for choice in made.choices],
        sections=sections(known, made, wanted, numbers),
        variants=[(numbers[one.manifest], one) for one in wanted],
        ORIGINAL=ORIGINAL,
        shown=figures.shown,
        words=figures.WORDS,
    )


def _newer(known: Known, made: SavedChoice, chosen_from: set[str]) -> int:
    """Count the measurements that came after the choice was made."""
    ours = (view for view in known.measurements if view.manifest in chosen_from)
    return sum(view.received_unix_s > made.made_unix_s for view in ours)


def sections(known: Known, made: SavedChoice, wanted: Sequence[ManifestView], numbers: dict[str, int]) -> list[Section]:
    """One section per device that measured or failed anything."""
    entries = facts.entries(wanted, known.manifests, known.measurements, known.trials, known.devices)
    by_device = {choice.group: choice for choice in pick(entries, _budget_of(made), per="device")}
    chosen = {(device, choice.chosen) for choice in made.choices for device in choice.devices}
    latest = facts.latest_measurements(known.measurements, {one.manifest: one.model for one in known.manifests})
    found = []
    for device, choice in sorted(by_device.items()):
        measured = [(one, view) for one in wanted if (view := latest.get((one.model, device)))]
        rows = _rows(choice, chosen, measured, numbers)
        failures = [
            (entry.name, run.failed)
            for entry in entries
            for run in entry.runs
            if run.device == device and run.failed is not None
        ]
        board = _board(device, [view for _, view in measured], known.devices)
        found.append(_section(device, board, rows, failures))
    return found


def _rows(
    choice: Choice,
    chosen: set[tuple[str, str | None]],
    measured: Iterable[tuple[ManifestView, MeasurementView]],
    numbers: dict[str, int],
) -> list[Row]:
    standings = {one.name: one for one in choice.standings}
    rows = []
    for manifest, view in measured:
        name = naming.name_of(manifest)
        standing = standings[name]
        outcome: Outcome = "front" if standing.outcome != "lost" else "lost"
        outcome = "chosen" if (choice.group, name) in chosen else outcome
        rows.append(Row(numbers[manifest.manifest], manifest, outcome, view, standing.figures))
    return rows


def _section(device: str, board: Board | None, rows: list[Row], failures: list[tuple[str, str]]) -> Section:
    timed = [row for row in rows if not row.view.measurement.emulated and row.figures.accuracy is not None]
    up = Axis("accuracy", _score_tick)
    return Section(
        device=device,
        board=board,
        latency_plot=plot.scatter(
            [_point(row, row.view.measurement.latency.p95_ms) for row in timed],
            Axis("p95 latency", _ms_tick, may_be_log=True),
            up,
        ),
        size_plot=plot.scatter(
            [_point(row, row.figures.file_bytes) for row in timed],
            Axis("file size", units.size, may_be_log=True),
            up,
        ),
        rows=tuple(rows),
        failures=tuple(failures),
        left_out=len(rows) - len(timed),
    )


def _point(row: Row, x: float) -> Point:
    y = row.figures.accuracy
    assert y is not None
    return Point(
        x=x,
        y=y,
        number=row.number,
        title=f"{row.number}. {row.name}: {units.score(y)}, {row.outcome}",
        shape="square" if row.manifest.format == "tflite" else "circle",
        outcome=row.outcome,
        original=row.manifest.variant == ORIGINAL,
    )


def _board(device: str, latest: Sequence[MeasurementView], devices: Iterable[DeviceView]) -> Board | None:
    if latest:
        return latest[-1].board
    return next((view.device.board for view in devices if view.id == device), None)


def _budget_of(made: SavedChoice) -> Budget:
    return made.choices[0].budget if made.choices else Budget()


def _blank(write: Any) -> Any:
    """Make a filter that leaves a cell empty where nothing was measured."""
    return lambda value: "" if value is None else write(value)


def _score_tick(value: float) -> str:
    return f"{100 * value:g} %" if 0 <= value <= 1 else f"{value:g}"


def _ms_tick(value: float) -> str:
    return f"{value:g} ms"


def _mhz(hertz: float) -> str:
    return f"{hertz / MEGA:.0f} MHz"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}{TIMES}" if ratio < 10 else f"{ratio:.0f}{TIMES}"


def _macs(value: float) -> str:
    return f"{value / MEGA:.2f} M"


def _when(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _budget(choice: Choice) -> list[tuple[str, str]]:
    """Limits of a budget, as words and figures."""
    pairs = (
        ("accuracy drop", "accuracy_drop", choice.budget.max_accuracy_drop),
        ("p95 latency", "p95_latency_ms", choice.budget.p95_latency_ms),
        ("peak memory", "peak_memory_bytes", choice.budget.peak_memory_bytes),
        ("energy", "energy_mj", choice.budget.energy_mj),
        ("file size", "file_bytes", choice.budget.max_file_bytes),
    )
    return [(word, figures.shown(key, value)) for word, key, value in pairs if value is not None]


def _steps(stats: dict[str, Any]) -> str:
    """Write the steps of a variant in words, with the options that tell them apart."""
    steps = stats.get("steps") or []
    said = []
    for step in steps:
        options = {key: value for key, value in step.get("options", {}).items() if isinstance(value, str | int | float)}
        short = ", ".join(f"{key} {value}" for key, value in options.items() if not isinstance(value, bool))
        said.append(f"{step.get('technique', '?')} ({short})" if short else str(step.get("technique", "?")))
    return " → ".join(said)
