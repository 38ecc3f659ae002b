"""What is measured on a device, and under which conditions. A number that was not measured is None."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import Name, Text
from edgepress_protocol.topics import NAME_PATTERN

DeviceId = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]


class Runtime(msgspec.Struct, frozen=True):
    """A runtime on a device: its package, version, and the artifact format that it runs."""

    name: Name
    version: Name
    format: Name


class Sensor(msgspec.Struct, frozen=True):
    """A source of readings. `scope` says what a power sensor sees (`module`, `pmic-rails`, `external`, `package`)."""

    name: Name
    quantity: Literal["power", "temperature", "throttling"]
    scope: Name
    simulated: bool


class Board(msgspec.Struct, frozen=True):
    """What a device is: enough to tell kinds of board apart.

    `kind` groups boards that are the same to a model (`raspberry-pi-5`, `jetson-orin-nano`, `x86_64`).
    """

    kind: Name
    model: Name
    arch: Name
    cpu: Name
    cores: int
    memory_bytes: int
    os: Name
    python: Name
    simulated: bool = False


class Device(msgspec.Struct, frozen=True):
    """A device's inventory."""

    id: DeviceId
    board: Board
    agent_version: Name
    speaks: tuple[int, int]
    runtimes: tuple[Runtime, ...] = ()
    sensors: tuple[Sensor, ...] = ()
    free_disk_bytes: int | None = None


class Conditions(msgspec.Struct, frozen=True):
    """State of the board beside a measurement; what could not be read is None."""

    governor: str | None = None
    frequency_hz: int | None = None
    temperature_celsius: float | None = None
    throttle_bits: int | None = None
    load_1min: float | None = None


class Window(msgspec.Struct, frozen=True):
    """One measuring window of a tight loop: runs, its length, and exact percentiles of its own samples."""

    runs: int
    duration_s: float
    p50_ms: float
    p95_ms: float


class Latency(msgspec.Struct, frozen=True):
    """Latency of one inference in a tight loop.

    `p50_ms` is the median of the windows' medians; the other percentiles are of all runs together, from
    the histogram (right to 0.4 %). `spread` is (max - min) / median of the windows' medians.
    """

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    runs: int
    spread: float
    unstable: bool
    windows: tuple[Window, ...]
    histogram: Histogram


class Memory(msgspec.Struct, frozen=True):
    """Memory of the runtime's process; `peak_bytes` and `pss_bytes` are above the empty runtime's baseline.

    `resident_peak_bytes` is the whole process at its peak (VmHWM).
    """

    baseline_bytes: int
    resident_peak_bytes: int
    peak_bytes: int
    pss_bytes: int | None = None


class Energy(msgspec.Struct, frozen=True):
    """Energy of one inference net of idle, with its 95 % t-interval over `pairs` idle/load pairs.

    `mj_per_inference` is None where the interval spans zero, which is below the sensor's resolution, and where
    `invalid` says why the pairs cannot be trusted.
    """

    mj_per_inference: float | None
    low_mj: float
    high_mj: float
    idle_mw: float
    load_mw: float
    pairs: int
    sensor: Name
    scope: Name
    simulated: bool
    invalid: Text = ""


class Paced(msgspec.Struct, frozen=True):
    """Latency of inferences that begin `rate_hz` times a second, the processor idle between them.

    A run that takes longer than the period pushes the next one to the next free beat; `late` counts the beats lost.
    """

    rate_hz: float
    runs: int
    late: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    histogram: Histogram


class Usage(msgspec.Struct, frozen=True):
    """What `runs` untimed inferences in a tight loop cost: processor time of all threads, and page faults."""

    runs: int
    cpu_ms_per_inference: float
    minor_faults: int
    major_faults: int


class AtThreads(msgspec.Struct, frozen=True):
    """Latency in a tight loop with another number of threads, in a process of its own."""

    threads: int
    p50_ms: float
    p95_ms: float
    spread: float
    runs: int


class Layer(msgspec.Struct, frozen=True):
    """One layer's time, from a run of its own under the runtime's profiler, which slows it: read shares.

    `provider` is where it ran, empty where the runtime does not tell.
    """

    name: Text
    operator: Text
    mean_ms: float
    share: float
    provider: Text = ""


class Stretch(msgspec.Struct, frozen=True):
    """One part of a long load: latency in it, and the board at its end."""

    seconds: float
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    temperature_celsius: float | None = None
    frequency_hz: int | None = None


class Soak(msgspec.Struct, frozen=True):
    """A long load: its first minute, and its last, when the board has become as warm as it will.

    `settled` tells whether the temperature stood still in the last part; None where the board tells none. `p50_ms`
    is the course: one median for each `slice_s`. `celsius_at_start` is the board's before the first minute.
    """

    seconds: float
    first: Stretch
    steady: Stretch
    settled: bool | None
    throttled: bool
    slice_s: float
    p50_ms: tuple[float, ...]
    celsius_at_start: float | None = None


class Quiet(msgspec.Struct, frozen=True):
    """How quiet the board was, before a trial and while it was timed; what could not be read is None.

    `busy_cores` is processor time that others than the measured process took, as a number of cores: in the check
    before, and while the headline was timed. `disturbed` says why the trial cannot be trusted as one of a quiet board
    can, empty where nothing was amiss; a disturbed trial is made once more, so that `attempts` is 1 or 2.
    """

    busy_cores_before: float | None = None
    busy_cores: float | None = None
    celsius_per_minute: float | None = None
    power_mode: str | None = None
    attempts: int = 1
    disturbed: tuple[Text, ...] = ()


class Accuracy(msgspec.Struct, frozen=True):
    """A metric over an evaluation set, computed on the device."""

    metric: Name
    value: float
    samples: int


class Measurement(msgspec.Struct, frozen=True):
    """What one trial measured.

    `providers` are the places where the runtime ran it, the preferred one first; `guards` what confined its process.
    """

    runtime: Runtime
    load_ms: float
    first_ms: float
    warmup_runs: int
    latency: Latency
    memory: Memory
    threads: int
    batch: int
    before: Conditions
    after: Conditions
    accuracy: Accuracy | None = None
    energy: Energy | None = None
    golden_max_error: float | None = None
    simulated: bool = False
    emulated: bool = False
    notes: tuple[Text, ...] = ()
    paced: Paced | None = None
    usage: Usage | None = None
    sweep: tuple[AtThreads, ...] = ()
    layers: tuple[Layer, ...] = ()
    soak: Soak | None = None
    quiet: Quiet | None = None
    providers: tuple[Name, ...] = ()
    guards: tuple[Name, ...] = ()
