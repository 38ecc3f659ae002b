"""What agent and child say to each other: MessagePack over a socket pair, each message after its length.

The agent asks, the child answers each question once; a `Trouble` is an answer to any of them. The length
is a u32, big-endian. Fields that come later have defaults: an agent whose package is replaced under it starts children
of the new one.
"""

from __future__ import annotations

import socket
import struct
from typing import Literal

import msgspec
from edgepress_protocol.histogram import Histogram
from edgepress_protocol.manifest import EvaluationSet, Manifest, TensorSpec
from edgepress_protocol.measurement import Layer, Memory, Runtime, Window
from edgepress_protocol.served import InputStats

LENGTH = struct.Struct(">I")
MAX_BYTES = 16 * 1024 * 1024
_ON_CPU = ("cpu", "xnnpack", "acl", "armnn", "dnnl")

# ---- before the first question


class Confine(msgspec.Struct, frozen=True, tag="confine"):
    """What a child keeps when it gives up the rest.

    `files` are those that it may read; `scratch` is the one folder that it may write to; `gpu` leaves it the nodes of
    GPUs, and what their drivers need; `off` leaves it everything, for a benchmark of what this costs.
    """

    files: tuple[str, ...]
    scratch: str
    nice: int = 0
    gpu: bool = False
    off: bool = False


class Confined(msgspec.Struct, frozen=True, tag="confined"):
    """The guards that are on, and one line for each that this kernel does not have."""

    on: tuple[str, ...]
    off: tuple[str, ...]


# ---- questions


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Load a model and run it once. Paths are those of verified files; `runtime` is the name of the one to run it.

    `memory_limit_bytes` is the address space allowed above the empty runtime's own, by default what the board has to
    give. `providers` are the places to run on, in this order, as `ProfileOptions` has them.
    """

    manifest: Manifest
    model: str
    runtime: str = ""
    threads: int = 1
    batch: int = 1
    golden: str | None = None
    evaluation: str | None = None
    memory_limit_bytes: int | None = None
    providers: tuple[str, ...] = ()


class Look(msgspec.Struct, frozen=True, tag="look"):
    """Load a model that came without a manifest, and say what its tensors are."""

    format: str
    model: str
    runtime: str = ""


class CheckGolden(msgspec.Struct, frozen=True, tag="check-golden"):
    """Run the golden vectors."""


class WarmUp(msgspec.Struct, frozen=True, tag="warm-up"):
    """Run at least so often and so long, and until drift is small."""

    runs: int
    seconds: float


class TimeWindows(msgspec.Struct, frozen=True, tag="time"):
    """Time every run of several windows."""

    windows: int
    window_s: float


class TimePaced(msgspec.Struct, frozen=True, tag="time-paced"):
    """Time runs that begin so often a second, for so long."""

    rate_hz: float
    seconds: float


class TimeLayers(msgspec.Struct, frozen=True, tag="time-layers"):
    """Load the model once more, under the runtime's profiler, and time its layers over so many runs."""

    runs: int


class Work(msgspec.Struct, frozen=True, tag="work"):
    """Run for so long, untimed, while the agent reads a power sensor."""

    seconds: float


class Serve(msgspec.Struct, frozen=True, tag="serve"):
    """Load a model and answer requests with it on the listening socket that was handed in.

    An answer may take `answer_s`: so long requests are waited for at the end, and a sign of life is given oftener.
    """

    manifest: Manifest
    model: str
    runtime: str = ""
    answer_s: float = 300.0


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Accept no more connections, answer what was begun, and end."""


class Evaluate(msgspec.Struct, frozen=True, tag="evaluate"):
    """Compute the metric over the evaluation set."""

    evaluation: EvaluationSet


Question = Look | Open | CheckGolden | WarmUp | TimeWindows | TimePaced | TimeLayers | Work | Evaluate | Serve | Drain

# ---- answers


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The model is loaded, and has run once on `batch` samples.

    `providers` are the places where it runs, the preferred one first; `limits` the guards put on beside `Confined`.
    """

    runtime: Runtime
    load_ms: float
    first_ms: float
    batch: int
    providers: tuple[str, ...] = ("cpu",)
    limits: tuple[str, ...] = ()


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """Tensors of a model, as its file tells them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class GoldenChecked(msgspec.Struct, frozen=True, tag="golden-checked"):
    """Largest error over all outputs; `wrong` says what is wrong, and is empty where nothing is."""

    max_error: float
    wrong: str


class Warm(msgspec.Struct, frozen=True, tag="warm"):
    """Runs until steady, and the memory that the model took until then."""

    runs: int
    memory: Memory


class Timed(msgspec.Struct, frozen=True, tag="timed"):
    """Windows and, over all of them, the histogram, the exact extremes, and this process's processor time."""

    windows: tuple[Window, ...]
    histogram: Histogram
    min_ns: int
    max_ns: int
    cpu_ns: int = 0


class TimedPaced(msgspec.Struct, frozen=True, tag="timed-paced"):
    """Latencies of paced runs, and how many beats were lost to runs longer than the period."""

    histogram: Histogram
    median_ns: int
    max_ns: int
    late: int


class TimedLayers(msgspec.Struct, frozen=True, tag="timed-layers"):
    """Layers in their order; `why` says why there are none, empty where there are."""

    layers: tuple[Layer, ...]
    why: str = ""


class Worked(msgspec.Struct, frozen=True, tag="worked"):
    """Runs between two moments of the monotonic clock, and what they cost this process."""

    runs: int
    start_ns: int
    end_ns: int
    cpu_ns: int = 0
    minor_faults: int = 0
    major_faults: int = 0


class Evaluated(msgspec.Struct, frozen=True, tag="evaluated"):
    """The metric's value over so many samples."""

    value: float
    samples: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Requests are answered from now on."""


class Served(msgspec.Struct, frozen=True, tag="served"):
    """Requests being answered now; since the last such message, those answered, those in error, latencies, inputs.

    `at_work_s` tells for how long the model has been computing one answer by now; None where it computes none.
    """

    in_flight: int
    requests: int
    errors: int
    latency: Histogram
    inputs: tuple[InputStats, ...] = ()
    at_work_s: float | None = None


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """The question could not be answered."""

    kind: Literal["memory", "rejected", "unsupported", "error"]
    detail: str


Answer = (
    Seen
    | Opened
    | GoldenChecked
    | Warm
    | Timed
    | TimedPaced
    | TimedLayers
    | Worked
    | Evaluated
    | Ready
    | Served
    | Trouble
)

_encoder = msgspec.msgpack.Encoder()


def on_gpu(providers: tuple[str, ...]) -> bool:
    """Whether running there needs more of the machine than its processors."""
    return any(provider not in _ON_CPU for provider in providers)


def pack(message: msgspec.Struct) -> bytes:
    """Encode a message with its length before it."""
    data = _encoder.encode(message)
    return LENGTH.pack(len(data)) + data


def receive(connection: socket.socket) -> bytes | None:
    """Read one message from a blocking socket; None where the other end closed it."""
    header = _exactly(connection, LENGTH.size)
    return None if header is None else _exactly(connection, LENGTH.unpack(header)[0])


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)
