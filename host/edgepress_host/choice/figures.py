"""What is known of one artifact on one kind of board: measurements of several devices put into one row. Pure.

Over several devices of a kind, latency and energy are the median of the devices, memory the largest, and accuracy the
lowest. An emulated device's latency, memory and energy never enter: only its accuracy does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

import msgspec
from edgepress_protocol.measurement import Measurement
from edgepress_protocol.messages import ProfileOptions

from edgepress_host import units

ORIGINAL = "original"
"""Name of the uncompressed model's own variant, which accuracy drops are counted from."""

OBJECTIVES = ("accuracy", "p95_latency_ms", "peak_memory_bytes", "file_bytes", "energy_mj")
WORDS = {
    "accuracy": "accuracy",
    "accuracy_drop": "accuracy drop",
    "p95_latency_ms": "p95 latency",
    "peak_memory_bytes": "peak memory",
    "file_bytes": "file size",
    "energy_mj": "energy",
}
BETTER = {
    "accuracy": "more accurate",
    "p95_latency_ms": "faster",
    "peak_memory_bytes": "less memory",
    "file_bytes": "smaller",
    "energy_mj": "less energy",
}
NEVER_TRIED = "not measured on "
"""How the reason begins why an artifact lost that no device of the group ran."""

Source = Literal["device", "host"]
N = TypeVar("N", int, float)


class Run(msgspec.Struct, frozen=True):
    """One trial's outcome on one device. `p95_latency_ms` is of the worst window where the run was unstable.

    `elsewhere` names the places other than the runtime's own where it was asked to run, and did.
    """

    device: str
    kind: str
    p50_latency_ms: float | None = None
    p95_latency_ms: float | None = None
    peak_memory_bytes: int | None = None
    energy_mj: float | None = None
    accuracy: float | None = None
    batch: int = 1
    threads: int = 1
    elsewhere: tuple[str, ...] = ()
    unstable: bool = False
    simulated: bool = False
    emulated: bool = False
    failed: str | None = None

    @staticmethod
    def of(device: str, kind: str, measurement: Measurement, asked: ProfileOptions | None = None) -> Run:
        """Take from a measurement what a choice rests on; `asked` is its trial's, where that is still known."""
        latency = measurement.latency
        worst_ms = max((window.p95_ms for window in latency.windows), default=latency.p95_ms)
        return Run(
            device=device,
            kind=kind,
            p50_latency_ms=latency.p50_ms,
            p95_latency_ms=max(worst_ms, latency.p95_ms) if latency.unstable else latency.p95_ms,
            peak_memory_bytes=measurement.memory.peak_bytes,
            energy_mj=measurement.energy.mj_per_inference if measurement.energy else None,
            accuracy=measurement.accuracy.value if measurement.accuracy else None,
            batch=measurement.batch,
            threads=measurement.threads,
            elsewhere=() if asked is not None and not asked.providers else not_the_cpu(measurement.providers),
            unstable=latency.unstable,
            simulated=measurement.simulated,
            emulated=measurement.emulated,
        )

    @property
    def as_served(self) -> bool:
        """Whether it was asked to run in the way in which the active model is served."""
        return self.batch == 1 and self.threads == 1 and not self.elsewhere

    @property
    def timed(self) -> bool:
        """Whether its latency may enter a choice: a real device's, as the active model is served."""
        return self.failed is None and not self.emulated and self.as_served and self.p95_latency_ms is not None


class Entry(msgspec.Struct, frozen=True):
    """A variant in one format, with the latest run of each device. `accuracy` is the host's, on validate."""

    variant: str
    format: str
    file_bytes: int
    accuracy: float | None = None
    runs: tuple[Run, ...] = ()

    @property
    def name(self) -> str:
        """`variant:format`, as commands take it."""
        return f"{self.variant}:{self.format}"


class Figures(msgspec.Struct, frozen=True):
    """One artifact's row for one group of devices. What was not measured is None."""

    file_bytes: int
    accuracy: float | None = None
    accuracy_from: Source | None = None
    accuracy_drop: float | None = None
    p50_latency_ms: float | None = None
    p95_latency_ms: float | None = None
    peak_memory_bytes: int | None = None
    energy_mj: float | None = None
    devices: tuple[str, ...] = ()
    unstable: bool = False
    simulated: bool = False


class Reference(msgspec.Struct, frozen=True):
    """The original's accuracy: as devices measured it, by format, and as the host did."""

    on_device: dict[str, float] = {}
    on_host: dict[str, float] = {}

    def drop(self, accuracy: float | None, source: Source | None, format_: str) -> float | None:
        """Loss against the original in the same format, else in its best one; None where nothing compares."""
        known = self.on_device if source == "device" else self.on_host
        if accuracy is None or not known:
            return None
        return known.get(format_, max(known.values())) - accuracy


def not_the_cpu(providers: Iterable[str]) -> tuple[str, ...]:
    """Names of places other than the CPU."""
    return tuple(provider for provider in providers if provider != "cpu")


def reference(entries: Iterable[Entry]) -> Reference:
    """Find what accuracy drops are counted from, in one group."""
    originals = [entry for entry in entries if entry.variant == ORIGINAL]
    measured = {entry.format: value for entry in originals if (value := _device_accuracy(entry)) is not None}
    return Reference(measured, {entry.format: entry.accuracy for entry in originals if entry.accuracy is not None})


def gather(entry: Entry, against: Reference) -> Figures:
    """Put the runs of one group's devices into one row.

    The drop compares like with like: device with device where the original was measured there too, else host with host.
    """
    timed = [run for run in entry.runs if run.timed]
    on_device = _device_accuracy(entry)
    accuracy = entry.accuracy if on_device is None else on_device
    source: Source | None = None if accuracy is None else "host" if on_device is None else "device"
    drop = against.drop(accuracy, source, entry.format)
    if drop is None:
        drop = against.drop(entry.accuracy, "host", entry.format)
    return Figures(
        file_bytes=entry.file_bytes,
        accuracy=accuracy,
        accuracy_from=source,
        accuracy_drop=drop,
        p50_latency_ms=_over(statistics.median, [run.p50_latency_ms for run in timed]),
        p95_latency_ms=_over(statistics.median, [run.p95_latency_ms for run in timed]),
        peak_memory_bytes=_over(max, [run.peak_memory_bytes for run in timed]),
        energy_mj=_over(statistics.median, [run.energy_mj for run in timed]),
        devices=tuple(sorted(run.device for run in timed)),
        unstable=any(run.unstable for run in timed),
        simulated=any(run.simulated for run in timed),
    )


def why_not_measured(entry: Entry, group: str, per: str) -> str:
    """Why this artifact cannot enter the choice, empty where it can. One failure in a group counts for all of it."""
    failed = sorted((run.device, run.failed) for run in entry.runs if run.failed is not None and run.as_served)
    if failed:
        return "; ".join(f"failed on {device}: {reason}" for device, reason in failed)
    if any(run.timed for run in entry.runs):
        return ""
    if any(run.emulated for run in entry.runs):
        return f"only emulated on {group}, and emulated latencies never enter"
    batches = sorted({run.batch for run in entry.runs if run.batch != 1})
    if batches:
        return f"measured only with batch {', '.join(map(str, batches))}; the choice is for one sample at a time"
    ways = sorted({way for run in entry.runs for way in _not_as_served(run)})
    if ways:
        return f"tried only {', '.join(ways)}; the active model is served on the CPU, by one thread"
    return f"{NEVER_TRIED}{'any ' if per == 'kind' else ''}{group}"


def _not_as_served(run: Run) -> list[str]:
    threads = [f"with {run.threads} threads"] if run.threads != 1 else []
    return threads + [f"on {provider}" for provider in run.elsewhere]


def compare(key: str, one: Figures, other: Figures) -> int:
    """1 where `one` is better in `key`, -1 where `other` is, 0 where they are equal."""
    mine, theirs = getattr(one, key), getattr(other, key)
    if mine == theirs:
        return 0
    return 1 if (mine > theirs) == (key == "accuracy") else -1


def shown(key: str, value: float | None) -> str:
    """Write a figure with its unit."""
    if key.endswith("_ms"):
        return units.ms(value)
    if key.endswith("_bytes"):
        return units.size(value)
    return units.mj(value) if key.endswith("_mj") else units.score(value)


def notes(entry: Entry, found: Figures, devices: int) -> tuple[str, ...]:
    """Say what a reader of the row must know besides its numbers."""
    said: list[str] = []
    if found.unstable:
        said.append("unstable: entered with its worst window's p95")
    if found.simulated:
        said.append("simulated")
    if 0 < len(found.devices) < devices:
        said.append(f"measured on {len(found.devices)} of {devices} devices")
    if found.accuracy is not None and found.accuracy_from == "host" and entry.runs:
        said.append("accuracy of the host")
    return tuple(said)


def _device_accuracy(entry: Entry) -> float | None:
    known = (run for run in entry.runs if run.failed is None and not run.elsewhere)
    return min((run.accuracy for run in known if run.accuracy is not None), default=None)


def _over(merge: Callable[[Sequence[N]], N], values: Iterable[N | None]) -> N | None:
    """Merge what is known; None where a device did not measure it, for a part would flatter the whole."""
    known = list(values)
    if not known or any(value is None for value in known):
        return None
    return merge([value for value in known if value is not None])
