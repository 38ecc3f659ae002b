"""The main path of compression: a recipe in, variants out, each one measured in the runtime that will run it.

original and each step's model → export per format → measure, judge, keep the best so far → file, golden vectors;
last of all the test split, once, for the report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgepress_host import exporters, variants
from edgepress_host.press import golden
from edgepress_host.press.judge import judge, sum_up
from edgepress_host.press.measure import same_content
from edgepress_host.press.store import disk, write_atomically
from edgepress_host.press.strict import fields_of
from edgepress_host.press.training import one_thread
from edgepress_host.press.workshop import Pressed, Workshop, attempt
from edgepress_host.recipe import ORIGINAL, Recipe, Variant
from edgepress_host.technique import StepFailed, Technique
from edgepress_host.variants import Measured, StepResult, VariantResult, Variants, Verdict


class Progress(msgspec.Struct, frozen=True):
    """Where a run stands: `done` of `total` steps, and what it is at."""

    done: int
    total: int
    doing: str


class State(msgspec.Struct, frozen=True):
    """A model on its way, and what was measured of it."""

    pressed: Pressed
    measured: Measured


class Baseline(msgspec.Struct, frozen=True):
    """The uncompressed model in one format; `state` is None where it does not work, for `reason`."""

    state: State | None
    reason: str = ""


class _Kept(msgspec.Struct, frozen=True):
    result: VariantResult
    content: bytes | None


def compress(recipe: Recipe, out: Path, *, progress: Callable[[Progress], None] = lambda _: None) -> Variants:
    """Make every variant of the recipe under `out`, with `variants.json` beside them.

    A run that was stopped goes on where it was: finished steps come from `out/.cache`.
    Raises UsageError (recipe, model or data cannot be used) and Unavailable (the disk).
    """
    with disk(out):
        out.mkdir(parents=True, exist_ok=True)
    clock = _Clock(recipe, progress)
    with one_thread():
        shop = Workshop(recipe, out, clock.say)
        baselines = {name: _baseline(shop, name, clock) for name in recipe.formats}
        kept = [_original(name, baseline) for name, baseline in baselines.items()]
        kept += [
            _press(shop, variant, name, baselines[name], clock)
            for variant in recipe.variants
            for name in variant.formats
        ]
        evaluation = golden.write_evaluation(out, shop.data.split("validate"))
        results = [_delivered(shop, out, one) for one in kept]
        results = _tested(shop, kept, results, clock)
    found = Variants(
        recipe_digest=recipe.digest,
        model=recipe.model.name,
        metric=recipe.metric,
        seed=recipe.seed,
        max_drop=recipe.guard.max_drop,
        budget=recipe.budget,
        evaluation=evaluation,
        variants=tuple(results),
    )
    variants.write(out, found)
    return found


def _baseline(shop: Workshop, format_: str, clock: _Clock) -> Baseline:
    clock.begin(f"{ORIGINAL}.{format_}")
    try:
        pressed = shop.start(format_)
        return Baseline(State(pressed, shop.measure(format_, pressed)))
    except StepFailed as error:
        return Baseline(None, str(error))
    finally:
        clock.end()


def _original(format_: str, baseline: Baseline) -> _Kept:
    state = baseline.state
    result = VariantResult(
        name=ORIGINAL,
        format=format_,
        verdict="failed" if state is None else "ok",
        reason=baseline.reason or "the model as it came",
        steps=(),
        kept_steps=0,
        seconds=0.0,
    )
    return _Kept(result, None) if state is None else _Kept(_with_measured(result, state.measured), state.pressed.graph)


def _press(shop: Workshop, variant: Variant, format_: str, baseline: Baseline, clock: _Clock) -> _Kept:
    """Do a variant's steps one after the other, and keep the last state that the guard let pass."""
    steps: list[StepResult] = []
    kept = 0
    best = at = baseline.state
    for number, step in enumerate(variant.steps, start=1):
        clock.begin(f"{variant.name}.{format_}, {step.tag}")
        if at is not None and best is not None and baseline.state is not None:
            result, after = _step(shop, step, format_, at, best.measured, baseline.state.measured)
            steps.append(result)
            if after is not None and result.verdict != "accuracy guard":
                kept, best = number, after
            # What a step lost, a later one may train back: the guard waits for it.
            elif not any(later.recovers() for later in variant.steps[number:]):
                after = None
            at = after
        clock.end()
    result_ = _summed_up(variant, format_, steps, kept, baseline)
    if kept == 0 or best is None:
        return _Kept(result_, None)
    return _Kept(_with_measured(result_, best.measured), best.pressed.graph)


def _summed_up(variant: Variant, format_: str, steps: list[StepResult], kept: int, baseline: Baseline) -> VariantResult:
    verdict: Verdict
    if baseline.state is None:
        verdict, reason = "failed", f"the original does not work in this format: {baseline.reason}"
    else:
        verdict, reason = sum_up(tuple(steps), kept=kept, planned=len(variant.steps))
    return VariantResult(
        name=variant.name,
        format=format_,
        verdict=verdict,
        reason=reason,
        steps=tuple(steps),
        kept_steps=kept,
        seconds=round(sum(step.seconds for step in steps), 3),
    )


def _step(
    shop: Workshop, step: Technique, format_: str, before: State, kept: Measured, original: Measured
) -> tuple[StepResult, State | None]:
    # As they are read back from the file, where a tuple is a list.
    options = msgspec.json.decode(msgspec.json.encode(fields_of(step)))
    try:
        outcome = shop.step(step, before.pressed, format_)
        after = shop.measure(format_, outcome.pressed)
    except StepFailed as error:
        failed = StepResult(technique=step.tag, options=options, verdict="failed", reason=str(error), seconds=0.0)
        return failed, None
    verdict, reason = judge(
        tag=step.tag,
        before=before.measured,
        after=after,
        kept=kept,
        original=original,
        same=same_content(format_, before.pressed.graph, outcome.pressed.graph),
        max_drop=shop.recipe.guard.max_drop,
    )
    result = StepResult(
        technique=step.tag,
        options=options,
        verdict=verdict,
        reason=reason,
        seconds=outcome.seconds,
        measured=after,
        notes=outcome.notes,
    )
    return result, State(outcome.pressed, after)


def _delivered(shop: Workshop, out: Path, kept: _Kept) -> VariantResult:
    """Write a variant's file and golden vectors."""
    if kept.content is None:
        return kept.result
    name, format_, content = kept.result.name, kept.result.format, kept.content
    exporter = exporters.get(format_)
    samples = shop.data.split("calibrate").x
    try:
        vectors = attempt("golden vectors", lambda: golden.write_golden(out, name, format_, content, samples))
        memory = shop.loaded_bytes(format_, content)
    except StepFailed as error:
        return msgspec.structs.replace(kept.result, verdict="failed", reason=str(error), kept_steps=0)
    file = f"{name}{exporter.SUFFIX}"
    write_atomically(out / file, content)
    inputs, outputs = exporter.tensors(content)
    return msgspec.structs.replace(
        kept.result,
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        inputs=inputs,
        outputs=outputs,
        golden=vectors,
        loaded_bytes=memory,
    )


def _tested(shop: Workshop, kept: list[_Kept], results: list[VariantResult], clock: _Clock) -> list[VariantResult]:
    """Score every file on the test split. Nothing is decided after this."""
    clock.say("reading the test split, for the report alone")
    samples = shop.data.test()
    fingerprint = samples.fingerprint
    tested = []
    for one, result in zip(kept, results, strict=True):
        clock.begin(f"{result.name}.{result.format}, test")
        if one.content is None or result.file is None:
            tested.append(result)
        else:
            value = shop.scored(result.format, one.content, samples, fingerprint)
            tested.append(msgspec.structs.replace(result, test_accuracy=value))
        clock.end()
    return tested


def _with_measured(result: VariantResult, measured: Measured) -> VariantResult:
    return msgspec.structs.replace(result, **fields_of(measured))


class _Clock:
    """Counts steps for whoever watches."""

    def __init__(self, recipe: Recipe, progress: Callable[[Progress], None]) -> None:
        formats = [name for variant in recipe.variants for name in variant.formats]
        steps = sum(len(variant.steps) * len(variant.formats) for variant in recipe.variants)
        self._total = 2 * len(recipe.formats) + steps + len(formats)
        self._done = 0
        self._at = ""
        self._progress = progress

    def begin(self, what: str) -> None:
        self._at = what
        self.say("")

    def say(self, what: str) -> None:
        doing = f"{self._at}: {what}" if what and self._at else what or self._at
        self._progress(Progress(done=self._done, total=self._total, doing=doing))

    def end(self) -> None:
        self._done += 1
        self.say("")
