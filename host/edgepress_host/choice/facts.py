"""From what the controller knows to what a choice rests on: each artifact's latest outcome on each device. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgepress_host.choice import naming
from edgepress_host.choice.figures import Entry, Run, not_the_cpu

if TYPE_CHECKING:
    from edgepress_host.client.artifacts import Artifact
    from edgepress_host.server.views import DeviceView, ManifestView, MeasurementView, TrialView


def manifests_of(artifacts: Iterable[Artifact], manifests: Sequence[ManifestView]) -> list[ManifestView]:
    """Manifests of the files of a folder: the same name, format and content."""
    wanted = {(one.variant, one.format, one.sha256) for one in artifacts}
    matching = [one for one in manifests if (one.variant, one.format, one.model) in wanted]
    # The same file may have come again by itself, without what the compress run knew of it.
    return naming.latest([one for one in matching if "recipe_digest" in one.stats] or matching)


def entries(
    wanted: Iterable[ManifestView],
    manifests: Iterable[ManifestView],
    measurements: Iterable[MeasurementView],
    trials: Iterable[TrialView],
    devices: Iterable[DeviceView],
) -> list[Entry]:
    """One entry per wanted manifest, with the latest outcome (measured or failed) of its file on each device.

    Outcomes count for the file: another of `manifests` may have described the same one. A failure on a device that is
    no longer known is left out, for nobody knows which kind of board it was.
    """
    kinds = {view.id: view.device.board.kind for view in devices}
    outcomes = latest_outcomes(measurements, trials, kinds, {one.manifest: one.model for one in manifests})
    return [
        Entry(
            variant=one.variant,
            format=one.format,
            file_bytes=one.file_bytes,
            accuracy=_number(one.stats.get("accuracy")),
            runs=tuple(run for (model, _), run in outcomes.items() if model == one.model),
        )
        for one in wanted
    ]


def latest_outcomes(
    measurements: Iterable[MeasurementView],
    trials: Iterable[TrialView],
    kinds: dict[str, str],
    models: dict[str, str],
) -> dict[tuple[str, str], Run]:
    """Latest outcome by model file and device; `kinds` are boards by device, `models` files by manifest."""
    trials = list(trials)
    asked = {trial.id: trial.options for trial in trials}
    dated = [
        (one.received_unix_s, one.manifest, Run.of(one.device, one.board.kind, one.measurement, asked.get(one.trial)))
        for one in measurements
    ]
    for trial in trials:
        if trial.state == "failed" and trial.device in kinds:
            how = trial.options
            run = Run(
                trial.device,
                kinds[trial.device],
                batch=how.batch,
                threads=how.threads,
                elsewhere=not_the_cpu(how.providers),
                failed=trial.detail or "failed",
            )
            dated.append((trial.ended_unix_s or 0.0, trial.manifest, run))
    # What was tried in another way than the active model is served hides nothing that was tried in this.
    dated.sort(key=lambda one: (one[2].as_served, one[0]))
    return {(models[manifest], run.device): run for _, manifest, run in dated if manifest in models}


def latest_measurements(
    measurements: Iterable[MeasurementView], models: dict[str, str]
) -> dict[tuple[str, str], MeasurementView]:
    """Of several measurements of one file on one device the last, by model file and device; those as served first."""

    def rank(one: MeasurementView) -> tuple[bool, float]:
        return Run.of(one.device, one.board.kind, one.measurement).as_served, one.received_unix_s

    dated = sorted(measurements, key=rank)
    return {(models[one.manifest], one.device): one for one in dated if one.manifest in models}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
