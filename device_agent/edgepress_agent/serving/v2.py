"""The Open Inference Protocol, version 2, in JSON and with its binary data extension. Pure; runs in the child.

Specification: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md; binary data:
extension_binary_data of Triton's protocol, where tensors follow the JSON in little-endian, row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import numpy as np
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Manifest, TensorSpec

from edgepress_agent.measure.tensors import Bound, to_real
from edgepress_agent.serving.values import DATATYPES, NAMES, from_bytes, from_json

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

_MOST_TENSORS = 256
_Size = Annotated[int, msgspec.Meta(ge=-1, le=1 << 40)]


class _OfInput(msgspec.Struct, frozen=True):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    shared_memory_region: str | None = None


class _OfOutput(msgspec.Struct, frozen=True):
    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None


class _OfRequest(msgspec.Struct, frozen=True):
    binary_data_output: bool = False
    sequence_id: int | str = 0


class Input(msgspec.Struct, frozen=True):
    """A tensor of a request; `data` is flat or nested JSON in row-major order, and empty where the data is binary."""

    name: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=32)]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: _OfInput = _OfInput()


class Output(msgspec.Struct, frozen=True):
    """An output that the client wants, and how."""

    name: str
    parameters: _OfOutput = _OfOutput()


class Request(msgspec.Struct, frozen=True):
    """What is posted to `/v2/models/NAME/infer`. Parameters that are not named here change nothing."""

    inputs: Annotated[tuple[Input, ...], msgspec.Meta(max_length=_MOST_TENSORS)]
    outputs: Annotated[tuple[Output, ...], msgspec.Meta(max_length=_MOST_TENSORS)] = ()
    id: str = ""
    parameters: _OfRequest = _OfRequest()


class Rendered(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor of an answer: `data`, or so many bytes after the JSON."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, int] = {}


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[Rendered]
    id: str = ""


class Inferred(NamedTuple):
    """An answer: the JSON, the binary tensors after it (None where none was asked for), and what came in, by input."""

    json: bytes
    binary: list[memoryview] | None
    inputs: list[Array]


_requests = msgspec.json.Decoder(Request)
_encoder = msgspec.json.Encoder()


class Endpoint:
    """A loaded model that answers requests.

    Reals may be sent to a quantized input: they are quantized here, and quantized outputs then come back as reals.
    """

    def __init__(self, bound: Bound, manifest: Manifest) -> None:
        self.bound = bound
        self.variant = manifest.variant
        self.version = manifest.model.sha256
        self.format = manifest.format
        self._inputs = {spec.name: position for position, spec in enumerate(bound.inputs)}
        self._outputs = {spec.name: position for position, spec in enumerate(bound.outputs)}
        self._all = tuple(Output(spec.name) for spec in bound.outputs)

    def infer(self, header: memoryview, binary: memoryview | None) -> Inferred:
        """Answer one request: its JSON, and what follows that where something does.

        Raises:
            Rejected: the request is not one for this model.
        """
        request = parse(header)
        arrays = self._arrays(request, binary)
        wanted = self._wanted(request)
        in_reals = any(
            array.dtype.kind == "f" and spec.dtype != array.dtype.name
            for array, spec in zip(arrays, self.bound.inputs, strict=True)
        )
        results = self.bound.run(arrays)
        rendered, parts = [], []
        for position, output in wanted:
            array = _given_out(results[position], self.bound.outputs[position], in_reals=in_reals)
            asked = output.parameters.binary_data
            if request.parameters.binary_data_output if asked is None else asked:
                parts.append(_bytes_of(array))
                about = {"binary_data_size": array.nbytes}
                rendered.append(Rendered(output.name, array.shape, NAMES[array.dtype.name], parameters=about))
            else:
                numbers = array.reshape(-1).tolist()
                rendered.append(Rendered(output.name, array.shape, NAMES[array.dtype.name], numbers))
        answer = _Answer(self.variant, self.version, rendered, request.id)
        return Inferred(_encoder.encode(answer), parts or None, arrays)

    def describe(self) -> bytes:
        """Render the model's metadata."""
        return _encoder.encode(
            {
                "name": self.variant,
                "versions": [self.version],
                "platform": self.format,
                "inputs": [_metadata(spec) for spec in self.bound.inputs],
                "outputs": [_metadata(spec) for spec in self.bound.outputs],
            }
        )

    def _arrays(self, request: Request, binary: memoryview | None) -> list[Array]:
        """Return the arrays that were sent, in the manifest's order."""
        found: list[Array | None] = [None] * len(self._inputs)
        start = 0
        for tensor in request.inputs:
            position = self._position(tensor.name, self._inputs, len(request.inputs), "input")
            spec = self.bound.inputs[position]
            if found[position] is not None:
                raise Rejected(f"input {spec.name!r} came twice")
            dtype = _dtype(tensor, spec)
            size = tensor.parameters.binary_data_size
            if size is None:
                found[position] = from_json(tensor.name, tensor.data, dtype, tensor.shape)
            elif binary is None or start + size > len(binary):
                raise Rejected(f"input {tensor.name!r} says {size} bytes, which are not behind the JSON")
            else:
                found[position] = from_bytes(tensor.name, binary[start : start + size], dtype, tensor.shape)
                start += size
        if binary is not None and start != len(binary):
            raise Rejected(f"{len(binary) - start} bytes behind the JSON belong to no input")
        missing = [spec.name for spec, array in zip(self.bound.inputs, found, strict=True) if array is None]
        if missing:
            raise Rejected(f"input {missing[0]!r} is missing")
        return [array for array in found if array is not None]

    def _wanted(self, request: Request) -> list[tuple[int, Output]]:
        """Return the outputs that are asked for, each with its position; all where none is named."""
        wanted = request.outputs or self._all
        positions = [self._position(each.name, self._outputs, len(wanted), "output") for each in wanted]
        if len(set(positions)) < len(positions):
            raise Rejected("an output is asked for twice")
        for each in wanted:
            if each.parameters.classification or each.parameters.shared_memory_region:
                raise Rejected(f"output {each.name!r}: neither classification nor shared memory is done here")
        return list(zip(positions, wanted, strict=True))

    def _position(self, name: str, known: dict[str, int], sent: int, what: str) -> int:
        # Exporters name tensors each in their own way: a lone one needs no name, and outlives a switch of formats.
        position = 0 if sent == len(known) == 1 else known.get(name)
        if position is None:
            raise Rejected(f"no {what} {name!r}: expected {', '.join(known)}")
        return position


def parse(header: memoryview | bytes) -> Request:
    """Decode the JSON of a request.

    Raises:
        Rejected: it is no such JSON.
    """
    try:
        request = _requests.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Rejected(f"not an inference request: {error}") from error
    if request.parameters.sequence_id not in {0, ""}:
        raise Rejected("sequences are not kept here: send no sequence_id")
    return request


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": NAMES[spec.dtype], "shape": _free(spec)}


def _free(spec: TensorSpec) -> list[int]:
    return [-1 if size is None else size for size in spec.shape]


def _dtype(tensor: Input, spec: TensorSpec) -> np.dtype[Any]:
    """Hold type and shape of what was sent against the model's."""
    takes = [NAMES[spec.dtype], *(["FP32"] if spec.quantization is not None else [])]
    if tensor.datatype not in takes:
        raise Rejected(f"input {spec.name!r} has datatype {tensor.datatype!r}: expected {' or '.join(takes)}")
    if tensor.parameters.shared_memory_region is not None:
        raise Rejected(f"input {tensor.name!r}: shared memory is not read here, send the data")
    if not _fits(tensor.shape, spec.shape):
        wanted = f"expected {_free(spec)}, -1 and the first free"
        raise Rejected(f"input {spec.name!r} has shape {list(tensor.shape)}: {wanted}")
    return DATATYPES[tensor.datatype]


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size > 0 and (i == 0 or fixed is None or size == fixed)
        for i, (size, fixed) in enumerate(zip(shape, wanted, strict=True))
    )


def _given_out(output: Array, spec: TensorSpec, *, in_reals: bool) -> Array:
    return to_real(output, spec).astype(np.float32) if in_reals and spec.quantization is not None else output


def _bytes_of(array: Array) -> memoryview:
    # NumPy tells of a half-precision buffer in a format that memoryview cannot cast.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
