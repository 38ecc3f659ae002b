"""OpenVINO, which runs ONNX files too: an agent uses it where ONNX Runtime is not, or with `--runtime openvino`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepress_protocol.manifest import TensorSpec
from edgepress_protocol.measurement import Layer, Runtime

from edgepress_agent.runtimes import Unsupported, distribution, onnx

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

_CPU = "cpu"
_UNKNOWN = ("not support the following ONNX", "Not supported", "Unsupported")


def available() -> Runtime | None:
    """Return the installed OpenVINO."""
    return distribution("onnx", "openvino", ("openvino",))


def prepare() -> None:
    """Import OpenVINO."""
    importlib.import_module("openvino")


def inspect(path: Path) -> None:
    """Refuse a file that keeps tensors in others, as for ONNX Runtime.

    Raises:
        Rejected: it does.
    """
    onnx.inspect(path)


def load(path: Path, threads: int) -> OpenvinoModel:
    """Load an ONNX file.

    Raises:
        Unsupported: it has an operator, an opset or a type that this OpenVINO does not know.
    """
    return load_on(path, threads, ())


def load_on(path: Path, threads: int, providers: Sequence[str]) -> OpenvinoModel:
    """Load an ONNX file to run on the first of these devices that is here, else on the CPU.

    Raises:
        Unsupported: as `load` does.
    """
    return OpenvinoModel(*_compiled(path, threads, providers))


def layer_times(
    path: Path, threads: int, inputs: Sequence[Array], runs: int, providers: Sequence[str]
) -> tuple[Layer, ...]:
    """Mean time of each layer over `runs` runs, by OpenVINO's own counters.

    Raises:
        Unsupported: as `load` does.
    """
    model = OpenvinoModel(*_compiled(path, threads, providers, {"PERF_COUNT": True}))
    run = model.repeat(inputs)
    times_us: dict[tuple[str, str], float] = {}
    for number in range(onnx.LAYERS_WARMUP_RUNS + runs):
        run()
        if number >= onnx.LAYERS_WARMUP_RUNS:
            for name, operator, microseconds in model.counted():
                times_us[name, operator] = times_us.get((name, operator), 0.0) + microseconds
    whole_us = sum(times_us.values())
    return tuple(
        Layer(*node, taken_us / runs / 1000, taken_us / whole_us if whole_us else 0.0, model.providers[0])
        for node, taken_us in times_us.items()
    )


def _compiled(
    path: Path, threads: int, providers: Sequence[str], more: Mapping[str, Any] | None = None
) -> tuple[Any, str]:
    """Compile a file for a device, and return it with the device's name."""
    import openvino

    core = openvino.Core()
    here = [device.lower() for device in core.available_devices]
    device = next((each for each in providers if each in here), _CPU)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", **(more or {})}
    if device == _CPU:
        # By itself it computes in bfloat16 or float16 where the processor can, and answers differ from board to board.
        settings |= {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    try:
        return core.compile_model(core.read_model(path.read_bytes()), device.upper(), settings), device
    except RuntimeError as error:
        if any(sign in str(error) for sign in _UNKNOWN):
            raise Unsupported(f"OpenVINO: {error}") from error
        raise


class OpenvinoModel:
    """A compiled model and its one request."""

    resizable = False

    def __init__(self, compiled: Any, device: str) -> None:
        self._request = compiled.create_infer_request()
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self.providers = (device,)
        self.stateful = bool(self._request.query_state())

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once."""
        results = self._request.infer(dict(enumerate(inputs)))
        return [results[position] for position in range(len(self.outputs))]

    def repeat(self, inputs: Sequence[Array]) -> Callable[[], object]:
        """Return one call of `infer` on inputs that it keeps."""
        self._request.infer(dict(enumerate(inputs)))
        infer: Callable[[], object] = self._request.infer
        return infer

    def counted(self) -> Iterator[tuple[str, str, float]]:
        """Name, operator and microseconds of each layer in the last run; those that were optimized away left out."""
        for each in self._request.profiling_info:
            if each.status == each.Status.EXECUTED:
                yield each.node_name, each.node_type, each.real_time.total_seconds() * 1e6

    def reset(self) -> None:
        """Set its variables back."""
        self._request.reset_state()


def _spec(port: Any) -> TensorSpec:
    shape = tuple(None if size.is_dynamic else int(size.get_length()) for size in port.partial_shape)
    return TensorSpec(port.get_any_name(), port.get_element_type().to_dtype().name, shape)
