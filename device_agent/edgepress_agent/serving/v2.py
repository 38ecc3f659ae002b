"""The Open Inference Protocol, version 2, in JSON: requests to arrays, arrays to responses. Pure; runs in the child.

Specification: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Manifest, TensorSpec

from edgepress_agent.measure.tensors import Bound, to_real

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class Tensor(msgspec.Struct, frozen=True):
    """A tensor in a request or response; `data` is flat or nested, in row-major order."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any]


class InferRequest(msgspec.Struct, frozen=True):
    """What is posted to `/v2/models/NAME/infer`."""

    inputs: tuple[Tensor, ...]
    id: str = ""


_requests = msgspec.json.Decoder(InferRequest)


def infer(bound: Bound, manifest: Manifest, body: bytes) -> bytes:
    """Answer one request.

    Reals may be sent to a quantized input: they are quantized here, and quantized outputs then come back as reals.

    Raises:
        Rejected: the request is not one for this model.
    """
    request = parse(body)
    given = {tensor.name: tensor for tensor in request.inputs}
    if len(request.inputs) == len(bound.inputs) == 1:
        # Exporters name inputs each in their own way: a lone one needs no name, and outlives a switch of formats.
        given = {bound.inputs[0].name: request.inputs[0]}
    arrays = [_array(given, spec) for spec in bound.inputs]
    unknown = set(given) - {spec.name for spec in bound.inputs}
    if unknown:
        raise Rejected(f"no input {min(unknown)!r}: expected {', '.join(spec.name for spec in bound.inputs)}")
    in_reals = any(array.dtype.kind == "f" and spec.dtype != array.dtype.name for array, spec in _zip(arrays, bound))
    outputs = bound.run(arrays)
    rendered = [_tensor(output, spec, in_reals) for output, spec in zip(outputs, bound.outputs, strict=True)]
    answer = {"model_name": manifest.variant, "model_version": manifest.model.sha256, "outputs": rendered}
    return msgspec.json.encode({**answer, "id": request.id} if request.id else answer)


def parse(body: bytes) -> InferRequest:
    """Decode a request.

    Raises:
        Rejected: it is no such JSON.
    """
    try:
        return _requests.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Rejected(f"not an inference request: {error}") from error


def describe(bound: Bound, manifest: Manifest) -> bytes:
    """Render the model's metadata."""
    return msgspec.json.encode(
        {
            "name": manifest.variant,
            "versions": [manifest.model.sha256],
            "platform": manifest.format,
            "inputs": [_metadata(spec) for spec in bound.inputs],
            "outputs": [_metadata(spec) for spec in bound.outputs],
        }
    )


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": _NAMES[spec.dtype], "shape": shape}


def _zip(arrays: list[Array], bound: Bound) -> list[tuple[Array, TensorSpec]]:
    return list(zip(arrays, bound.inputs, strict=True))


def _array(given: dict[str, Tensor], spec: TensorSpec) -> Array:
    tensor = given.get(spec.name)
    if tensor is None:
        raise Rejected(f"input {spec.name!r} is missing")
    dtype = DATATYPES.get(tensor.datatype)
    takes = [_NAMES[spec.dtype], *(["FP32"] if spec.quantization is not None else [])]
    if dtype is None or tensor.datatype not in takes:
        raise Rejected(f"input {spec.name!r} has datatype {tensor.datatype!r}: expected {' or '.join(takes)}")
    fits = len(tensor.shape) == len(spec.shape) and all(
        size > 0 and (i == 0 or wanted is None or size == wanted)
        for i, (size, wanted) in enumerate(zip(tensor.shape, spec.shape, strict=True))
    )
    if not fits:
        wanted = _metadata(spec)["shape"]
        raise Rejected(f"input {spec.name!r} has shape {list(tensor.shape)}: expected {wanted}, -1 and the first free")
    flat = _numbers(tensor, dtype)
    if flat.size != math.prod(tensor.shape):
        raise Rejected(f"input {spec.name!r}: {flat.size} numbers for shape {list(tensor.shape)}")
    return flat.reshape(tensor.shape)


def _numbers(tensor: Tensor, dtype: str) -> Array:
    """Make an array of JSON's numbers; what the type cannot hold is refused, never wrapped or cut off."""
    try:
        flat: Array = np.asarray(tensor.data).reshape(-1)
    except ValueError as error:
        raise Rejected(f"input {tensor.name!r}: data is ragged") from error
    wanted = np.dtype(dtype)
    kinds = {"b": "b", "f": "fiu"}.get(wanted.kind, "iu")
    if flat.dtype.kind not in kinds:
        raise Rejected(f"input {tensor.name!r}: data is not all {tensor.datatype}")
    limits = np.iinfo(wanted) if wanted.kind in "iu" else None
    if limits is not None and flat.size and not limits.min <= flat.min() <= flat.max() <= limits.max:
        raise Rejected(f"input {tensor.name!r}: a number is out of the range of {tensor.datatype}")
    return flat.astype(wanted)


def _tensor(output: Array, spec: TensorSpec, in_reals: bool) -> Tensor:
    if in_reals and spec.quantization is not None:
        output = to_real(output, spec).astype(np.float32)
    return Tensor(spec.name, output.shape, _NAMES[output.dtype.name], output.reshape(-1).tolist())
