"""Numbers of a request as arrays: from JSON, and from bytes.

What a type cannot hold is refused, never wrapped or cut off.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from edgepress_protocol.errors import Rejected

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

NAMES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's name of each type that a model's tensor can have."""

DATATYPES = {name: np.dtype(dtype) for dtype, name in NAMES.items()}

_lists: dict[str, msgspec.json.Decoder[Any]] = {
    "b": msgspec.json.Decoder(list[bool]),
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
    "f": msgspec.json.Decoder(list[float]),
}


def from_bytes(name: str, data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Make an array of little-endian, row-major bytes, without a copy where they lie as the type wants it.

    Raises:
        Rejected: they are too many or too few, or no such values.
    """
    count = math.prod(shape)
    if len(data) != count * dtype.itemsize:
        wanted = f"{count * dtype.itemsize} bytes for {NAMES[dtype.name]} {list(shape)}"
        raise Rejected(f"input {name!r} has {len(data)} bytes: expected {wanted}")
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max() > 1:
        raise Rejected(f"input {name!r}: a byte of BOOL is neither 0 nor 1")
    array: Array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)
    return array if array.flags.aligned else array.copy()


def from_json(name: str, data: msgspec.Raw, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Make an array of JSON's numbers, flat or nested.

    Raises:
        Rejected: they are too many or too few, or no such values.
    """
    numbers = _numbers(name, data, dtype)
    if len(numbers) != math.prod(shape):
        raise Rejected(f"input {name!r}: {len(numbers)} numbers for shape {list(shape)}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= min(numbers) <= max(numbers) <= limits.max:
            raise Rejected(f"input {name!r}: a number is out of the range of {NAMES[dtype.name]}")
    with np.errstate(over="ignore"):
        array: Array = np.array(numbers, dtype).reshape(shape)
    # JSON has no infinity: one here is a number that was too large.
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise Rejected(f"input {name!r}: a number is out of the range of {NAMES[dtype.name]}")
    return array


def _numbers(name: str, data: msgspec.Raw, dtype: np.dtype[Any]) -> list[Any]:
    if not bytes(data):
        raise Rejected(f"input {name!r} has neither data nor binary_data_size")
    decoder = _lists[dtype.kind]
    try:
        numbers: list[Any] = decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        flat = _flattened(name, data)
        try:
            numbers = msgspec.convert(flat, decoder.type)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Rejected(f"input {name!r}: data is not all {NAMES[dtype.name]}") from error
    return numbers


def _flattened(name: str, data: msgspec.Raw) -> list[Any]:
    """Unpack lists of lists, whose depth must be the same everywhere."""
    try:
        level = msgspec.json.decode(data, type=list[Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Rejected(f"input {name!r}: data is no list of numbers") from error
    while any(isinstance(each, list) for each in level):
        if not all(isinstance(each, list) for each in level):
            raise Rejected(f"input {name!r}: data is ragged")
        level = [number for row in level for number in row]
    return level
