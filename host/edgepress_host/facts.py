"""From what the controller knows to what a choice rests on: each artifact's latest outcome on each device. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgepress_host import naming
from edgepress_host.figures import Entry, Run

if TYPE_CHECKING:
    from edgepress_host.artifacts import Artifact
    from edgepress_host.server.views import DeviceView, ManifestView, MeasurementView, TrialView


def manifests_of(artifacts: Iterable[Artifact], manifests: Sequence[ManifestView]) -> list[ManifestView]:
    """Manifests of the files of a folder: the same name, format and content."""
    wanted = {(one.variant, one.format, one.sha256) for one in artifacts}
    return naming.latest(one for one in manifests if (one.variant, one.format, one.model) in wanted)


def entries(
    manifests: Iterable[ManifestView],
    measurements: Iterable[MeasurementView],
    trials: Iterable[TrialView],
    devices: Iterable[DeviceView],
) -> list[Entry]:
    """One entry per manifest, with the latest outcome (measured or failed) on each device.

    A failure on a device that is no longer known is left out, for nobody knows which kind of board it was.
    """
    outcomes = latest_outcomes(measurements, trials, {view.id: view.device.board.kind for view in devices})
    return [
        Entry(
            variant=one.variant,
            format=one.format,
            file_bytes=one.file_bytes,
            accuracy=_number(one.stats.get("accuracy")),
            runs=tuple(run for (manifest, _), run in sorted(outcomes.items()) if manifest == one.manifest),
        )
        for one in manifests
    ]


def latest_outcomes(
    measurements: Iterable[MeasurementView], trials: Iterable[TrialView], kinds: dict[str, str]
) -> dict[tuple[str, str], Run]:
    """Latest outcome by manifest and device."""
    dated = [
        (view.received_unix_s, view.manifest, Run.of(view.device, view.board.kind, view.measurement))
        for view in measurements
    ]
    dated += [
        (view.ended_unix_s or 0.0, view.manifest, Run(view.device, kinds[view.device], failed=view.detail or "failed"))
        for view in trials
        if view.state == "failed" and view.device in kinds
    ]
    dated.sort(key=lambda one: one[0])
    return {(manifest, run.device): run for _, manifest, run in dated}


def latest_measurements(measurements: Iterable[MeasurementView]) -> list[MeasurementView]:
    """Of several measurements of one artifact on one device, the last; by variant, format and device."""
    by_pair = {(one.manifest, one.device): one for one in sorted(measurements, key=lambda one: one.received_unix_s)}
    return sorted(by_pair.values(), key=lambda one: (one.device, one.variant, one.format))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
