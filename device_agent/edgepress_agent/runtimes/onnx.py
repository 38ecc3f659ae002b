"""ONNX Runtime, on its CPU provider, or on those that a trial asks for."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import TensorSpec
from edgepress_protocol.measurement import Layer, Runtime

from edgepress_agent.runtimes import Unsupported, distribution
from edgepress_agent.runtimes._external import first_outside

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

# A Jetson brings its own build, under a name of its own.
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
_PROVIDER, _CPU = "ExecutionProvider", "cpu"
LAYERS_WARMUP_RUNS = 5
_KERNEL = "_kernel_time"
_UNKNOWN = ("is not a registered function/op", "NOT_IMPLEMENTED", "NotImplemented", "only *guarantees* support")


def available() -> Runtime | None:
    """Return the installed ONNX Runtime."""
    return distribution("onnx", "onnxruntime", _PACKAGES)


def prepare() -> None:
    """Import ONNX Runtime."""
    importlib.import_module("onnxruntime")


def load(path: Path, threads: int) -> OnnxModel:
    """Load an ONNX file.

    Raises:
        Unsupported: it has an operator, an opset or a type that this ONNX Runtime does not know.
    """
    return load_on(path, threads, ())


def load_on(path: Path, threads: int, providers: Sequence[str]) -> OnnxModel:
    """Load an ONNX file to run on these execution providers, as far as this build has them, and on the CPU.

    Raises:
        Unsupported: as `load` does.
    """
    return OnnxModel(_session(path, _options(threads), providers))


def short(provider: str) -> str:
    """Return the name that people use.

    >>> short("TensorrtExecutionProvider"), short("CUDA")
    ('tensorrt', 'cuda')
    """
    return provider.removesuffix(_PROVIDER).lower()


def inspect(path: Path) -> None:
    """Refuse a file that keeps tensors in others.

    Raises:
        Rejected: it does.
    """
    other = first_outside(path)
    if other is not None:
        raise Rejected(f"the file keeps tensors in another file, {other!r}; a variant is one file: save it as one")


def layer_times(
    path: Path, threads: int, inputs: Sequence[Array], runs: int, providers: Sequence[str]
) -> tuple[Layer, ...]:
    """Mean time of each node over `runs` runs, by ONNX Runtime's own profiler, which writes a file of events.

    It times the calls that start a node: on a GPU they may return before the node has run.

    Raises:
        Unsupported: as `load` does.
    """
    options = _options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(dir=".") as folder:
        options.profile_file_prefix = f"{folder}/layers"
        session = _session(path, options, providers)
        feeds = {each.name: value for each, value in zip(session.get_inputs(), inputs, strict=True)}
        for _ in range(LAYERS_WARMUP_RUNS + runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return layers_of(events, runs)


def layers_of(events: Sequence[dict[str, Any]], runs: int) -> tuple[Layer, ...]:
    """Mean time of each node over its last `runs` events: those before them warmed it up."""
    times_us: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            args = event["args"]
            node = event["name"].removesuffix(_KERNEL), str(args.get("op_name", "")), str(args.get("provider", ""))
            times_us.setdefault(node, []).append(float(event["dur"]))
    means_ms = {node: sum(found[-runs:]) / runs / 1000 for node, found in times_us.items()}
    whole_ms = sum(means_ms.values())
    return tuple(
        Layer(name, operator, mean_ms, mean_ms / whole_ms if whole_ms else 0.0, short(provider))
        for (name, operator, provider), mean_ms in means_ms.items()
    )


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Spinning threads fight for the cores of a small board: p99 / p50 was 30 with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _session(path: Path, options: Any, providers: Sequence[str] = ()) -> Any:
    import onnxruntime

    here = {short(each): each for each in onnxruntime.get_available_providers()}
    asked = [here[name] for name in map(short, providers) if name in here and name != _CPU]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[*asked, f"CPU{_PROVIDER}"])
    except Exception as error:
        if any(sign in f"{type(error).__name__} {error}" for sign in _UNKNOWN):
            raise Unsupported(f"ONNX Runtime {onnxruntime.__version__}: {error}") from error
        raise


class OnnxModel:
    """A session and the names of its tensors."""

    resizable = False

    def __init__(self, session: Any) -> None:
        self._session = session
        # A provider that could not start is left out here, and nowhere else.
        self.providers = tuple(short(each) for each in session.get_providers())
        self.inputs = tuple(_spec(each) for each in session.get_inputs())
        self.outputs = tuple(_spec(each) for each in session.get_outputs())
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once."""
        feeds = dict(zip(self._input_names, inputs, strict=True))
        results: list[Array] = self._session.run(self._output_names, feeds)
        return results

    def repeat(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """Return one call of `session.run`."""
        return partial(self._session.run, self._output_names, dict(zip(self._input_names, inputs, strict=True)))


def _spec(node: Any) -> TensorSpec:
    if node.type not in _TYPES:
        raise Unsupported(f"tensor {node.name!r} has type {node.type}: numbers and booleans can be fed")
    shape = tuple(each if isinstance(each, int) and each >= 0 else None for each in node.shape)
    return TensorSpec(node.name, _TYPES[node.type], shape)
