"""One file per format: what leaves a torch module, or what reads a file of that format. Found by name."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Protocol, cast, runtime_checkable

import msgspec
import numpy as np
from edgepress_protocol.manifest import TensorSpec
from torch import nn


class Weight(msgspec.Struct, frozen=True):
    """One stored tensor of a file: how it is kept, and a digest of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    elements: int
    nonzero: int


class Exporter(Protocol):
    """What a file in this folder offers."""

    SUFFIX: str

    def export(self, module: nn.Module, example: np.ndarray) -> bytes:
        """Bytes of a file that computes what `module` computes; `example` has shape (2, …)."""

    def tensors(self, content: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs of a file."""

    def weights(self, content: bytes) -> list[Weight]:
        """Every constant tensor of a file, subgraphs included."""

    def operators(self, content: bytes) -> list[str]:
        """Kinds of the file's operators, in order, subgraphs included."""


@runtime_checkable
class Lowerable(Protocol):
    """A layer whose forward pass can tell an exporter about its integers, by torch.ops.quantized_decomposed."""

    def lower(self, format_: str) -> None:
        """Change the layer, in place, to what a format stores."""


@runtime_checkable
class Gridded(Lowerable, Protocol):
    """Such a layer with a weight: integers times a scale per output channel."""

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight (C_out, …) and the scales (C_out,), float32."""


@runtime_checkable
class Stepped(Lowerable, Protocol):
    """Such a layer that rounds what passes it to multiples of `scale`."""

    @property
    def scale(self) -> float:
        """The step."""


def lowerable(module: nn.Module) -> list[Lowerable]:
    """Return the layers of that kind."""
    return [layer for layer in module.modules() if isinstance(layer, Lowerable)]


def stepped(module: nn.Module) -> list[nn.Module]:
    """Return the layers that round activations."""
    return [layer for layer in module.modules() if isinstance(layer, Stepped) and not isinstance(layer, Gridded)]


@functools.cache
def names() -> tuple[str, ...]:
    """Return the formats, by the names of the files here."""
    return tuple(sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")))


def get(name: str) -> Exporter:
    """Return the exporter of a format; its libraries load only when they are used."""
    return cast("Exporter", importlib.import_module(f"{__name__}.{name}"))
