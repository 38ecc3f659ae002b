"""The report's page: blank where nothing was measured, harmless whatever a device says of itself."""

from __future__ import annotations

import doctest
import time
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from edgepress_host import units
from edgepress_host.choice import facts, gains
from edgepress_host.choice.budget import Budget
from edgepress_host.choice.choices import SavedChoice
from edgepress_host.choice.figures import Entry, Run
from edgepress_host.choice.select import pick
from edgepress_host.cli import _shared
from edgepress_host.reporting import plot, report
from edgepress_host.reporting.plot import Axis, Point
from edgepress_host.server.views import ManifestView, MeasurementView, TrialView
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import TensorSpec
from edgepress_protocol.measurement import (
    Accuracy,
    Board,
    Conditions,
    Energy,
    Latency,
    Measurement,
    Memory,
    Paced,
    Quiet,
    Runtime,
    Soak,
    Stretch,
    Usage,
    Window,
)
from edgepress_protocol.messages import ProfileOptions
from hypothesis import given
from hypothesis import strategies as st

HOSTILE = "<script>alert(1)</script>"
BOARD = Board("raspberry-pi-5", HOSTILE, "aarch64", HOSTILE, 4, 8_000_000_000, HOSTILE, "3.11")


def manifest(variant: str, number: int, file_bytes: int = 1000) -> ManifestView:
    spec = (TensorSpec("x", "float32", (None, 4)),)
    digest = f"{number:064x}"
    stats = {"accuracy": 0.9, "source": HOSTILE, "reason": HOSTILE, "verdict": "ok", "steps": []}
    return ManifestView(digest, variant, "onnx", digest, file_bytes, file_bytes, spec, spec, True, "", stats, 1.0)


def measured(of: ManifestView, p50_ms: float, *, at: float = 1.0, device: str = "pi", **more: Any) -> MeasurementView:
    window = Window(10, 1.0, p50_ms, p50_ms)
    latency = Latency(
        p50_ms,
        p50_ms,
        p50_ms,
        p50_ms,
        p50_ms,
        p50_ms,
        10,
        0.0,
        more.pop("unstable", False),
        (window,),
        Histogram.of([10]),
    )
    measurement = Measurement(
        runtime=Runtime("onnxruntime", HOSTILE, "onnx"),
        load_ms=1.0,
        first_ms=1.0,
        warmup_runs=10,
        latency=latency,
        memory=Memory(1, 2, 3),
        threads=more.pop("threads", 1),
        batch=more.pop("batch", 1),
        before=Conditions(governor=HOSTILE),
        after=Conditions(),
        **more,
    )
    return MeasurementView(f"{at}", device, BOARD, of.manifest, of.variant, "onnx", measurement, at)


def page(
    manifests: list[ManifestView], measurements: list[MeasurementView], trials: list[TrialView] | None = None
) -> str:
    known = report.Known(manifests, measurements, trials or [], [])
    entries = facts.entries(manifests, manifests, measurements, [], [])
    made = SavedChoice(
        choices=pick(entries, Budget()),
        manifests={f"{one.variant}:{one.format}": one.manifest for one in manifests},
        made_unix_s=time.time(),
    )
    return report.render(known, made, time.time())


class Cells(HTMLParser):
    """Text of table cells, row by row, and every tag that was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self._open = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data.strip()

    def row(self, name: str) -> dict[str, str]:
        """The first table row about an artifact, by column."""
        head = next(row for row in self.rows if "p95" in row)
        values = next(row for row in self.rows if any(cell.startswith(name) for cell in row))
        return dict(zip(head, values, strict=True))


def test_a_choice_that_is_older_than_what_was_measured_says_so() -> None:
    original, small = manifest("original", 1), manifest("small", 2)
    before = [measured(original, 2.0), measured(small, 1.0)]
    assert "newer than the choice" not in page([original, small], before)
    after = measured(small, 9.0, at=time.time() + 60)
    assert "1 measurement is newer than the choice" in page([original, small], [*before, after])


def test_nothing_that_a_device_says_becomes_markup() -> None:
    hostile = manifest(HOSTILE, 1)
    text = page([hostile], [measured(hostile, 1.0, accuracy=Accuracy("top1", 0.9, 100))])
    assert "script" not in Cells(text).tags
    assert "<svg" in text
    assert "&lt;script&gt;" in text


def test_what_was_not_measured_is_blank_and_never_zero() -> None:
    original = manifest("original", 1)
    row = Cells(page([original], [measured(original, 1.0)])).row("original:onnx")
    assert (row["energy"], row["accuracy"], row["temperature"], row["clock"], row["PSS"]) == ("", "", "", "", "")
    assert row["p50"] == "1.00 ms"


def test_energy_below_resolution_is_said() -> None:
    original = manifest("original", 1)
    energy = Energy(None, -1.0, 1.0, 1000.0, 1001.0, 6, "ina3221", "module", simulated=True)
    row = Cells(page([original], [measured(original, 1.0, energy=energy)])).row("original:onnx")
    assert row["energy"] == "below resolutionsimulated"
    throttled = Energy(None, -1.0, 1.0, 1000.0, 1001.0, 6, "ina3221", "module", simulated=False, invalid="throttled")
    row = Cells(page([original], [measured(original, 1.0, energy=throttled)])).row("original:onnx")
    assert row["energy"] == "invalid"


def test_what_is_measured_beside_the_headline_is_there() -> None:
    original = manifest("original", 1)
    first, steady = (Stretch(60.0, 100, p50_ms, 3.0, 4.0) for p50_ms in (1.0, 1.5))
    more = {
        "paced": Paced(20.0, 200, 3, 2.0, 2.2, 2.5, 2.7, 3.0, Histogram.of([10])),
        "soak": Soak(900.0, first, steady, settled=True, throttled=True, slice_s=1.0, p50_ms=(1.0, 1.5)),
        "usage": Usage(100, 1.25, 0, 0),
        "quiet": Quiet(disturbed=(HOSTILE,), attempts=2),
        "providers": ("cuda", "cpu"),
        "guards": (HOSTILE,),
    }
    text = page([original], [measured(original, 1.0, **more)])
    row = Cells(text).row("original:onnx")
    assert (row["p95 paced"], row["processor"]) == ("2.50 ms", "1.25 ms")
    assert row["after a long load"] == "1.50 msthrottled"
    assert row["runtime"].endswith("on cuda, cpu")
    assert ">disturbed</span>" in text
    assert "200 runs at 20 Hz, 3 beats lost" in text
    assert "script" not in Cells(text).tags


def test_badges() -> None:
    original = manifest("original", 1)
    text = page([original], [measured(original, 1.0, unstable=True, simulated=True)])
    assert ">unstable</span>" in text
    assert ">simulated</span>" in text


def test_gains_are_against_the_original_on_the_same_devices() -> None:
    original, small = manifest("original", 1, 4000), manifest("small", 2, 1000)
    views = [
        measured(original, 2.0, accuracy=Accuracy("top1", 0.90, 100)),
        measured(small, 0.5, accuracy=Accuracy("top1", 0.89, 100)),
    ]
    (choice,) = pick(facts.entries([original, small], [original, small], views, [], []), Budget())
    found = gains.of(choice)
    assert found is not None
    assert (found.chosen, found.smaller, found.faster, found.less_energy) == ("small:onnx", 4.0, 4.0, None)
    assert found.accuracy_change == pytest.approx(-0.01)
    text = page([original, small], views)
    assert "smaller" in text
    assert text.count("<svg") == 2


def test_the_latest_outcome_counts_and_a_batch_does_not_hide_it() -> None:
    one = manifest("a", 1)
    views = [measured(one, 1.0, at=1.0), measured(one, 2.0, at=2.0), measured(one, 9.0, at=3.0, batch=8)]
    (entry,) = facts.entries([one], [one], views, [], [])
    assert [run.p50_latency_ms for run in entry.runs] == [2.0]
    latest = facts.latest_measurements(views, {one.manifest: one.model})
    assert latest[one.model, "pi"].measurement.latency.p50_ms == 2.0


@pytest.mark.parametrize("how", [{"threads": 4}, {"providers": ("cuda", "cpu")}])
def test_what_is_not_as_served_hides_no_measurement_that_is(how: dict[str, object]) -> None:
    one = manifest("a", 1)
    views = [measured(one, 1.0, at=1.0, accuracy=Accuracy("top1", 0.9, 9)), measured(one, 9.0, at=3.0, **how)]
    asked = ProfileOptions(threads=4) if "threads" in how else ProfileOptions(providers=("cuda",))
    trial = TrialView("late", "pi", one.manifest, "a", "onnx", "failed", "no memory", asked, None, 1.0, 9.0)
    models, kinds = {one.manifest: one.model}, {"pi": "raspberry-pi-5"}
    run = facts.latest_outcomes(views, [trial], kinds, models)[one.model, "pi"]
    assert (run.p50_latency_ms, run.failed) == (1.0, None)
    assert facts.latest_measurements(views, models)[one.model, "pi"].measurement.latency.p50_ms == 1.0
    failed = facts.latest_outcomes([], [trial], kinds, models)[one.model, "pi"]
    (choice,) = pick([Entry("a", "onnx", 1000, 0.9, (failed,))], Budget())
    assert choice.standings[0].reason.startswith("tried only ")


def test_accuracy_of_another_place_is_not_that_of_the_active_model() -> None:
    one = manifest("a", 1)
    away = measured(one, 1.0, at=2.0, accuracy=Accuracy("top1", 0.7, 9), providers=("tensorrt",))
    (entry,) = facts.entries([one], [one], [away], [], [])
    (choice,) = pick([entry], Budget())
    assert choice.standings[0].figures.accuracy_from != "device"


def test_a_runtime_whose_own_place_is_no_cpu_is_as_served_there() -> None:
    """The trial asked for no place, so that the active model runs where it ran."""
    one = manifest("a", 1)
    view = measured(one, 1.0, providers=("npu",))
    trial = TrialView(view.trial, "pi", one.manifest, "a", "onnx", "done", "", ProfileOptions(), None, 1.0, 2.0)
    (entry,) = facts.entries([one], [one], [view], [trial], [])
    assert entry.runs[0].timed


def test_an_unstable_measurement_enters_with_its_worst_window() -> None:
    one = manifest("a", 1)
    view = measured(one, 1.0, unstable=True)
    windows = (Window(10, 1.0, 1.0, 1.0), Window(10, 1.0, 5.0, 7.0))
    latency = msgspec.structs.replace(view.measurement.latency, windows=windows)
    unstable = msgspec.structs.replace(view.measurement, latency=latency)
    steady = msgspec.structs.replace(unstable, latency=msgspec.structs.replace(latency, unstable=False))
    assert Run.of("pi", "pi", unstable).p95_latency_ms == 7.0
    assert Run.of("pi", "pi", steady).p95_latency_ms == 1.0


def test_outcomes_count_for_the_file_however_it_was_described() -> None:
    one = manifest("a", 1)
    same_file = msgspec.structs.replace(one, manifest="f" * 64, variant="found")
    (entry,) = facts.entries([one], [one, same_file], [measured(same_file, 3.0)], [], [])
    assert [run.p50_latency_ms for run in entry.runs] == [3.0]


def test_a_failure_on_a_forgotten_device_is_left_out() -> None:
    one = manifest("a", 1)
    trial = TrialView("t", "gone", one.manifest, "a", "onnx", "failed", "crash", ProfileOptions(), None, 1.0, 2.0)
    (entry,) = facts.entries([one], [one], [], [trial], [])
    assert entry.runs == ()


@given(st.lists(st.tuples(st.floats(1e-6, 1e9), st.floats(-1e6, 1.0)), min_size=1, max_size=20), st.booleans())
def test_every_point_lies_within_the_plot(values: list[tuple[float, float]], may_be_log: bool) -> None:
    points = [Point(x, y, number, "p") for number, (x, y) in enumerate(values)]
    drawn = plot.scatter(points, Axis("x", str, may_be_log), Axis("y", str))

    class Circles(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "circle":
                found = dict(attrs)
                assert plot.LEFT <= float(found["cx"] or -1) <= plot.WIDTH - plot.RIGHT
                assert plot.TOP <= float(found["cy"] or -1) <= plot.HEIGHT - plot.BOTTOM

    Circles().feed(drawn)
    assert drawn.count("<circle") == len(points)


@given(st.floats(1e-4, 1e6))
def test_figures_keep_three_digits(value: float) -> None:
    number = float(units.ms(value).removesuffix(" ms"))
    assert number == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize("module", [units, plot, _shared])
def test_examples_in_docstrings(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
