"""Choosing: what a user may rely on, whatever was measured."""

from __future__ import annotations

import random

import msgspec
import pytest
from edgepress_host.choice.budget import GOALS, Budget
from edgepress_host.choice.figures import OBJECTIVES, Entry, Figures, Run, compare
from edgepress_host.choice.select import Choice, Per, Standing, pick
from edgepress_protocol.errors import UsageError
from honest import made_up
from hypothesis import given
from hypothesis import strategies as st


def run(device: str = "pi-1", kind: str = "pi", **facts: object) -> Run:
    known: dict[str, object] = {"p50_latency_ms": 1.0, "p95_latency_ms": 2.0, "peak_memory_bytes": 10_000}
    return msgspec.convert({"device": device, "kind": kind, **known, **facts}, Run)


def entry(variant: str, *runs: Run, format_: str = "onnx", size: int = 1000, accuracy: float | None = 0.9) -> Entry:
    return Entry(variant, format_, size, accuracy, runs or (run(),))


def standing(choice: Choice, name: str) -> Standing:
    return next(s for s in choice.standings if s.name == name)


def only(entries: list[Entry], budget: Budget | None = None) -> Choice:
    (choice,) = pick(entries, budget or Budget())
    return choice


# ---- properties

numbers = st.one_of(st.none(), st.integers(1, 6).map(float))
runs = st.builds(
    Run,
    device=st.sampled_from(["a", "b", "c"]),
    kind=st.sampled_from(["pi", "jetson"]),
    p50_latency_ms=st.just(1.0),
    p95_latency_ms=numbers,
    peak_memory_bytes=st.one_of(st.none(), st.integers(1, 6)),
    energy_mj=numbers,
    accuracy=st.one_of(st.none(), st.sampled_from([0.5, 0.7, 0.9])),
    batch=st.sampled_from([1, 1, 1, 8]),
    threads=st.sampled_from([1, 1, 1, 4]),
    elsewhere=st.sampled_from([(), (), (), ("cuda",)]),
    unstable=st.booleans(),
    emulated=st.sampled_from([False, False, False, True]),
    failed=st.sampled_from([None, None, None, None, "crash: signal 11"]),
)
entries = st.lists(
    st.builds(
        Entry,
        variant=st.sampled_from(["original", "a", "b", "c", "d"]),
        format=st.sampled_from(["onnx", "tflite"]),
        file_bytes=st.integers(1, 6),
        accuracy=st.one_of(st.none(), st.sampled_from([0.5, 0.7, 0.9])),
        runs=st.lists(runs, max_size=3, unique_by=lambda r: r.device).map(tuple),
    ),
    max_size=8,
    unique_by=lambda e: (e.variant, e.format),
)
budgets = st.builds(
    Budget,
    max_accuracy_drop=st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.25])),
    p95_latency_ms=numbers,
    peak_memory_bytes=st.one_of(st.none(), st.integers(1, 6)),
    energy_mj=numbers,
    max_file_bytes=st.one_of(st.none(), st.integers(1, 6)),
    minimise=st.sampled_from(GOALS),
)
per = st.sampled_from(["kind", "device"])


@given(entries, budgets, per)
def test_what_is_chosen_keeps_every_limit(candidates: list[Entry], budget: Budget, per: Per) -> None:
    for choice in pick(candidates, budget, per=per):
        for found in (s.figures for s in choice.standings if s.outcome != "lost"):
            for limit, key in (
                (budget.p95_latency_ms, "p95_latency_ms"),
                (budget.peak_memory_bytes, "peak_memory_bytes"),
                (budget.energy_mj, "energy_mj"),
                (budget.max_file_bytes, "file_bytes"),
                (budget.max_accuracy_drop, "accuracy_drop"),
            ):
                value = getattr(found, key)
                assert limit is None or (value is not None and value <= limit)


@given(entries, budgets, per)
def test_nothing_on_the_front_is_dominated_and_the_choice_is_the_least(
    candidates: list[Entry], budget: Budget, per: Per
) -> None:
    for choice in pick(candidates, budget, per=per):
        front = [s.figures for s in choice.standings if s.outcome != "lost"]
        for one in front:
            assert not any(dominates(other, one, choice.compared) for other in front)
        winner = choice.winner
        assert (winner is None) == (not front)
        if winner is not None:
            assert choice.chosen == winner.name
            least = min(getattr(found, budget.minimise) for found in front)
            assert getattr(winner.figures, budget.minimise) == least


def dominates(one: Figures, other: Figures, keys: tuple[str, ...]) -> bool:
    def no_worse(key: str) -> bool:
        mine, theirs = getattr(one, key), getattr(other, key)
        return bool(mine >= theirs if key == "accuracy" else mine <= theirs)

    return all(map(no_worse, keys)) and any(getattr(one, k) != getattr(other, k) for k in keys)


@given(entries, budgets, per, st.randoms(use_true_random=False))
def test_the_order_of_what_was_measured_does_not_matter(
    candidates: list[Entry], budget: Budget, per: Per, shuffler: random.Random
) -> None:
    shuffled = [msgspec.structs.replace(e, runs=tuple(shuffler.sample(e.runs, len(e.runs)))) for e in candidates]
    shuffler.shuffle(shuffled)
    assert pick(shuffled, budget, per=per) == pick(candidates, budget, per=per)


@given(entries, budgets)
def test_everybody_is_listed_once_and_told_why(candidates: list[Entry], budget: Budget) -> None:
    for choice in pick(candidates, budget):
        assert sorted(s.name for s in choice.standings) == sorted(e.name for e in candidates)
        assert all(s.reason for s in choice.standings)
        assert choice.why


@given(st.sampled_from(OBJECTIVES), st.floats(1, 9), st.floats(1, 9))
def test_comparing_is_antisymmetric(key: str, a: float, b: float) -> None:
    one, other = Figures(file_bytes=1), Figures(file_bytes=1)
    one, other = msgspec.structs.replace(one, **{key: a}), msgspec.structs.replace(other, **{key: b})
    assert compare(key, one, other) == -compare(key, other, one)


# ---- the words


def test_a_loser_over_the_budget_hears_by_how_much() -> None:
    choice = only([entry("big", run(p95_latency_ms=4.1))], Budget(p95_latency_ms=2.0))
    assert choice.chosen is None
    assert choice.why == (
        "no variant keeps the p95 latency of 2.00 ms; the least is 4.10 ms: pass a higher --p95-latency-ms, or none"
    )
    assert choice.standings[0].reason == "p95 latency 4.10 ms over the budget of 2.00 ms"


def test_a_dominated_loser_hears_by_whom_and_in_what() -> None:
    choice = only(
        [
            entry("good", run(p95_latency_ms=1.0), size=500, accuracy=0.95),
            entry("bad", run(p95_latency_ms=2.0), size=1000, accuracy=0.90),
        ]
    )
    assert choice.chosen == "good:onnx"
    assert standing(choice, "bad:onnx").reason == (
        "dominated by good:onnx: more accurate (95.00 % against 90.00 %), faster (1.00 ms against 2.00 ms), "
        "smaller (500 B against 1.00 kB), and no worse in the rest"
    )


def test_minimise_decides_among_the_front() -> None:
    fast = entry("fast", run(p95_latency_ms=1.0), size=900)
    small = entry("small", run(p95_latency_ms=2.0), size=100)
    assert only([fast, small]).chosen == "fast:onnx"
    choice = only([fast, small], Budget(minimise="file_bytes"))
    assert choice.chosen == "small:onnx"
    assert (
        standing(choice, "fast:onnx").reason == "on the front; small:onnx has the lower file size (100 B against 900 B)"
    )


def test_a_variant_that_failed_on_one_board_of_a_kind_is_not_chosen_for_that_kind() -> None:
    flaky = entry("flaky", run("pi-1", p95_latency_ms=0.1), run("pi-2", failed="timeout: after 60 s"))
    choice = only([flaky, entry("steady", run("pi-1"), run("pi-2"))])
    assert choice.chosen == "steady:onnx"
    assert standing(choice, "flaky:onnx").reason == "failed on pi-2: timeout: after 60 s"


def test_not_measured_here_is_said_and_the_other_kind_is_not_disturbed() -> None:
    pi = entry("a", run("pi-1", "pi"))
    nano = entry("b", run("nano-1", "nano"))
    by_kind = {choice.group: choice for choice in pick([pi, nano], Budget())}
    assert by_kind["pi"].chosen == "a:onnx"
    assert by_kind["nano"].chosen == "b:onnx"
    assert standing(by_kind["pi"], "b:onnx").reason == "not measured on any pi"


@pytest.mark.parametrize(
    ("how", "words"),
    [({"threads": 4}, "with 4 threads"), ({"elsewhere": ("cuda",)}, "on cuda")],
)
def test_what_is_measured_otherwise_than_it_is_served_never_enters(how: dict[str, object], words: str) -> None:
    choice = only([entry("a", run(p95_latency_ms=0.001, **how)), entry("b")])
    assert choice.chosen == "b:onnx"
    reason = f"tried only {words}; the active model is served on the CPU, by one thread"
    assert standing(choice, "a:onnx").reason == reason
    assert only([entry("a", run(**how), run(device="pi-2", p95_latency_ms=1.5)), entry("b")]).chosen == "a:onnx"


def test_a_run_says_how_it_was_measured() -> None:
    measured = msgspec.structs.replace(made_up(), threads=2, providers=("tensorrt", "cuda", "cpu"))
    found = Run.of("pi-1", "pi", measured)
    assert (found.threads, found.elsewhere, found.timed) == (2, ("tensorrt", "cuda"), False)
    assert Run.of("pi-1", "pi", msgspec.structs.replace(made_up(), providers=("cpu",))).timed


def test_emulated_latencies_never_enter() -> None:
    choice = only([entry("a", run(p95_latency_ms=0.001, emulated=True)), entry("b")])
    assert choice.chosen == "b:onnx"
    assert "only emulated" in standing(choice, "a:onnx").reason
    assert standing(choice, "a:onnx").figures.p95_latency_ms is None


def test_several_boards_of_a_kind_median_latency_largest_memory_lowest_accuracy() -> None:
    facts = [(1.0, 5, 0.9), (2.0, 9, 0.8), (9.0, 7, 0.9)]
    measured = [run(f"pi-{i}", p95_latency_ms=p, peak_memory_bytes=m, accuracy=a) for i, (p, m, a) in enumerate(facts)]
    found = only([entry("a", *measured)]).standings[0].figures
    assert (found.p95_latency_ms, found.peak_memory_bytes, found.accuracy) == (2.0, 9, 0.8)
    assert found.accuracy_from == "device"
    by_device = pick([entry("a", *measured)], Budget(), per="device")
    assert [choice.group for choice in by_device] == ["pi-0", "pi-1", "pi-2"]


def test_the_drop_is_counted_like_with_like() -> None:
    original = entry("original", run(accuracy=0.80), accuracy=0.92)
    pressed = entry("pressed", run(accuracy=0.79, p95_latency_ms=1.0), accuracy=0.85)
    choice = only([original, pressed], Budget(max_accuracy_drop=0.02))
    assert standing(choice, "pressed:onnx").figures.accuracy_drop == pytest.approx(0.01)
    assert choice.chosen == "pressed:onnx"


def test_the_host_stands_in_for_accuracy_and_says_so() -> None:
    original = entry("original", accuracy=0.92)
    pressed = entry("pressed", run(p95_latency_ms=1.0), accuracy=0.85)
    choice = only([original, pressed], Budget(max_accuracy_drop=0.02))
    lost = standing(choice, "pressed:onnx")
    assert lost.reason == "accuracy drop 7.00 % over the budget of 2.00 %"
    assert "accuracy of the host" in lost.notes


def test_an_energy_budget_without_a_sensor_cannot_be_kept() -> None:
    choice = only([entry("a")], Budget(energy_mj=5.0))
    assert choice.standings[0].reason == "energy is not known, the budget is 5.00 mJ"


def test_no_choice_names_the_limit_that_nothing_keeps() -> None:
    no_energy = "no board here measured energy, which the budget limits; leave energy_mj out or pass --energy-mj none"
    big = entry("big", run(p95_latency_ms=9.0))
    assert only([entry("a"), big], Budget(energy_mj=5.0, p95_latency_ms=3.0)).why == no_energy
    both = only([big], Budget(energy_mj=5.0, p95_latency_ms=3.0)).why
    assert no_energy in both
    assert "no variant keeps the p95 latency of 3.00 ms" in both
    assert "no drop of accuracy is known here" in only([entry("a")], Budget(max_accuracy_drop=0.1)).why
    assert "pass another --minimise" in only([entry("a")], Budget(minimise="energy_mj")).why
    slow_or_big = [entry("a", run(p95_latency_ms=9.0), size=10), entry("b", size=1000)]
    assert only(slow_or_big, Budget(p95_latency_ms=3.0, max_file_bytes=100)).why == "no variant keeps the budget"
    failed = only([entry("a", run(failed="crash: signal 11"))], Budget(energy_mj=5.0))
    assert (failed.why, failed.measured) == ("no variant was measured here", False)


def test_energy_is_compared_only_where_all_have_it() -> None:
    assert "energy_mj" not in only([entry("a", run(energy_mj=1.0)), entry("b")]).compared
    assert "energy_mj" in only([entry("a", run(energy_mj=1.0)), entry("b", run(energy_mj=2.0))]).compared


def test_ties_fall_the_same_way() -> None:
    assert only([entry("b"), entry("a")]).chosen == "a:onnx"


@pytest.mark.parametrize("budget", [Budget(p95_latency_ms=0.0), Budget(max_accuracy_drop=-0.1)])
def test_an_impossible_limit_is_refused(budget: Budget) -> None:
    with pytest.raises(UsageError, match="budget"):
        pick([entry("a")], budget)
