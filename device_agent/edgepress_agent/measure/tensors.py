"""A model held against its manifest, and what it is fed. The agent itself imports no numpy, and none of this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Carried, Manifest, TensorSpec
from numpy import random  # here, so that it is not weighed with a model that came without inputs

from edgepress_agent.runtimes import Model, Unsupported
from edgepress_agent.runtimes._state import KeepsState

if TYPE_CHECKING:
    from edgepress_agent.runtimes import Array

_SEED = 0


@dataclass(frozen=True)
class Bound:
    """A loaded model held against its manifest: tensors go in and out in the manifest's order.

    `batch` is the first dimension of what is fed at a time. `carried` are states: pairs of the input that takes one
    and the output that gives it.
    """

    model: Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feed_order: tuple[int, ...]
    take_order: tuple[int, ...]
    batch: int
    carried: tuple[tuple[int, int], ...] = ()

    @property
    def free(self) -> tuple[int, ...]:
        """Positions of the inputs that samples are fed to: all that take no state."""
        states = {position for position, _ in self.carried}
        return tuple(i for i in range(len(self.inputs)) if i not in states)

    @property
    def stateful(self) -> bool:
        """Whether a run depends on those before it."""
        return bool(self.carried) or (isinstance(self.model, KeepsState) and self.model.stateful)

    def arrange(self, arrays: Sequence[Array]) -> list[Array]:
        """Put arrays from the manifest's order into the file's, in the stored types, ready to run."""
        stored = [to_stored(array, spec) for array, spec in zip(arrays, self.inputs, strict=True)]
        return [stored[position] for position in self.feed_order]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once, from and to the manifest's order."""
        return self.restore(self.model.run(self.arrange(arrays)))

    def restore(self, results: Sequence[Array]) -> list[Array]:
        """Put outputs from the file's order into the manifest's."""
        return [results[position] for position in self.take_order]


def bind(model: Model, manifest: Manifest, batch: int) -> Bound:
    """Hold the file against its manifest.

    Tensors are matched by name where the names agree, else by position; types and shapes must agree either way.

    Raises:
        Rejected: the file is not what the manifest says.
        Unsupported: the file's batch is fixed at another number than `batch`, and cannot be changed.
    """
    feed = _match(manifest.inputs, model.inputs, "input")
    take = _match(manifest.outputs, model.outputs, "output")
    inputs = tuple(_scaled(model.inputs[feed.index(i)], said) for i, said in enumerate(manifest.inputs))
    outputs = tuple(_scaled(model.outputs[i], said) for i, said in zip(take, manifest.outputs, strict=True))
    carried = tuple(_carry(each, manifest, inputs, outputs) for each in manifest.carried)
    bound = Bound(model, inputs, outputs, feed, take, 1, carried)
    if bound.stateful and batch != 1:
        raise Unsupported(f"the model keeps a state from run to run, so that its batch is 1; {batch} was asked for")
    return replace(bound, batch=_batch(inputs, batch, resizable=model.resizable))


def _scaled(found: TensorSpec, said: TensorSpec) -> TensorSpec:
    """Take scale and zero point from the manifest where the file has no place for them, as ONNX has none."""
    if said.quantization is None or found.quantization == said.quantization:
        return found
    if found.quantization is not None:
        raise Rejected(f"{said.name!r}: the manifest says {said.quantization}, the file {found.quantization}")
    return msgspec.structs.replace(found, quantization=said.quantization)


def _carry(
    carried: Carried, manifest: Manifest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[int, int]:
    taken = [spec.name for spec in manifest.inputs]
    given = [spec.name for spec in manifest.outputs]
    if carried.input not in taken or carried.output not in given:
        raise Rejected(f"the manifest carries {carried.output!r} to {carried.input!r}, and names no such tensors")
    source, sink = outputs[given.index(carried.output)], inputs[taken.index(carried.input)]
    if source.dtype != sink.dtype or not _fits(source.shape, sink.shape):
        raise Rejected(f"output {carried.output!r} does not fit input {carried.input!r}, which takes its state")
    return taken.index(carried.input), given.index(carried.output)


def zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """Make a tensor of zeros; of zero points where it is quantized."""
    zero = 0 if spec.quantization is None else spec.quantization.zero_point
    return np.full(shape, zero, np.dtype(spec.dtype))


def _match(said: Sequence[TensorSpec], found: Sequence[TensorSpec], what: str) -> tuple[int, ...]:
    """Return, for inputs, the manifest position of each of the file's; for outputs, the file position of each said."""
    if len(said) != len(found):
        raise Rejected(f"the manifest names {len(said)} {what}s, the file has {len(found)}")
    names_said, names_found = [spec.name for spec in said], [spec.name for spec in found]
    by_name = sorted(names_said) == sorted(names_found)
    file_position = [names_found.index(name) if by_name else i for i, name in enumerate(names_said)]
    for spec, position in zip(said, file_position, strict=True):
        other = found[position]
        if spec.dtype != other.dtype or not _fits(spec.shape, other.shape):
            raise Rejected(
                f"{what} {spec.name!r}: the manifest says {spec.dtype} {_shape(spec)},"
                f" the file {other.dtype} {_shape(other)}"
            )
    if what == "output":
        return tuple(file_position)
    return tuple(file_position.index(i) for i in range(len(found)))


def _fits(said: tuple[int | None, ...], found: tuple[int | None, ...]) -> bool:
    return len(said) == len(found) and all(a is None or b is None or a == b for a, b in zip(said, found, strict=True))


def _shape(spec: TensorSpec) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in spec.shape) + ")"


def _batch(inputs: tuple[TensorSpec, ...], wanted: int, *, resizable: bool) -> int:
    """Batch that the file takes: what is wanted where it is free, else what the file fixes."""
    shape = inputs[0].shape
    fixed = shape[0] if len(shape) > 1 else None
    if fixed is None or fixed == wanted or (resizable and fixed == 1):
        return wanted
    if wanted == 1:
        return fixed
    raise Unsupported(f"the file's batch is fixed at {fixed}; batch {wanted} was asked for")


def shape_of(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """Concrete shape of one input at `batch`: a free first dimension is the batch, any other free one is 1."""
    sizes = [size if size is not None else (batch if i == 0 else 1) for i, size in enumerate(spec.shape)]
    if len(sizes) > 1 and sizes[0] == 1:
        sizes[0] = batch
    return tuple(sizes)


def to_stored(array: Array, spec: TensorSpec) -> Array:
    """Bring reals into the type that a model stores; arrays of that type pass untouched.

    Raises:
        Rejected: reals came for integers whose scale nobody knows.
    """
    dtype = np.dtype(spec.dtype)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if spec.quantization is not None and array.dtype.kind == "f":
        steps = np.rint(array / spec.quantization.scale) + spec.quantization.zero_point
        limits = np.iinfo(dtype)
        return np.ascontiguousarray(np.clip(steps, limits.min, limits.max).astype(dtype))
    if array.dtype.kind == "f" and dtype.kind != "f":
        raise Rejected(f"input {spec.name!r} takes {spec.dtype} without a scale, and {array.dtype} came")
    return np.ascontiguousarray(array.astype(dtype))


def to_real(array: Array, spec: TensorSpec) -> Array:
    """Bring a stored output back into reals."""
    real = array.astype(np.float64)
    if spec.quantization is None:
        return real
    return (real - spec.quantization.zero_point) * spec.quantization.scale


def random_inputs(bound: Bound) -> list[Array]:
    """Make seeded inputs, in the manifest's order, for a model that came with none.

    Reals are standard normal, quantized integers fill their range, others are 0 or 1: safe as indexes too.
    """
    source = random.default_rng(_SEED)
    return [_random(source, spec, shape_of(spec, bound.batch)) for spec in bound.inputs]


def _random(source: random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return source.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu" and spec.quantization is not None:
        limits = np.iinfo(dtype)
        return source.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return source.integers(0, 2, shape).astype(dtype)
