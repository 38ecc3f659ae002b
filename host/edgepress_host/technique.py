"""What a technique is, and how one is found: one file in `techniques/`, or an entry point `edgepress.techniques`."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal, TypeVar

import msgspec
import numpy as np
from edgepress_protocol.errors import EdgepressError, UsageError
from torch import nn

from edgepress_host import techniques
from edgepress_host.press.data import Samples
from edgepress_host.press.loading import did_you_mean
from edgepress_host.press.sensitivity import Memo, afresh
from edgepress_host.press.training import Augment
from edgepress_host.text import one_line

GROUP = "edgepress.techniques"
Stage = Literal["module", "graph"]
Trait = Literal["zeros", "pattern", "shared", "grid", "factors"]
"""What a step leaves in the weights: single zeros, or N of every M; shared values; values of few bits; factors."""
S = TypeVar("S", bound="Technique")


class StepFailed(EdgepressError):  # noqa: N818 - it names what happened to the step
    """A step cannot be done on this model; that is its variant's verdict, and the others go on."""


class Workbench(msgspec.Struct, frozen=True):
    """What a step may use besides its input. The test split is not here, on purpose."""

    original: Callable[[], nn.Module]
    split: Callable[[str], Samples]
    seed: int
    say: Callable[[str], None]
    metric: Callable[[np.ndarray, np.ndarray], float]
    """The recipe's metric, (outputs, labels) → the higher the better."""

    augment: Augment | None
    """The recipe's augmentation of training batches."""

    note: Callable[[str], None]
    """Kept with the step's result and shown to the user, for instance the layers that were skipped."""

    memo: Memo = afresh
    """Numbers of models that are costly to measure on validate, by what they are of."""

    def calibration(self, count: int) -> np.ndarray:
        """Return the first samples of the calibrate split, shape (count, …)."""
        return self.split("calibrate").x[:count]


class Technique(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen record of options, which never changes its input. Its tag is the name of its file or family's folder.

    A technique of stage "module" has `apply_module`, one of stage "graph" has `apply_graph`.
    """

    stage: ClassVar[Stage]
    reads: ClassVar[tuple[str, ...]] = ()
    """The splits that decide its result, which therefore belong to its cache key."""

    examples: ClassVar[tuple[dict[str, Any], ...]]
    """Options that are worth a try; the contract tests run every technique with each of them."""

    @property
    def tag(self) -> str:
        """The technique's name in a recipe."""
        return type(self).__module__.rpartition(".")[2]

    def makes(self) -> frozenset[Trait]:
        """Return what the step leaves in the weights."""
        return frozenset()

    def breaks(self) -> frozenset[Trait]:
        """Return what the step would undo, had an earlier step made it; the recipe is then refused."""
        return frozenset()

    def check(self) -> None:
        """Raise UsageError, starting with the option's name, where options contradict each other."""

    def extra_key(self) -> str:
        """Whatever else decides the result and is not in the options, for the cache key."""
        return ""

    def base(self) -> str | None:
        """`module:attr` of the module that the result has the structure of, where that is not the input's."""
        return None

    def starts_over(self) -> bool:
        """Tell whether nothing of the step's input is left in its result, so that it must be the first step."""
        return False

    def recovers(self) -> bool:
        """Tell whether the step trains, so that accuracy which the steps before it lost may come back."""
        return False

    def prepared(self) -> Technique | None:
        """Return the step of stage "module" that a graph step needs done before the export, where there is one."""
        return None

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a new module; `model` stays as it is."""
        raise NotImplementedError

    def apply_graph(self, format_: str, content: bytes, bench: Workbench) -> bytes:
        """Return the bytes of a new file from the bytes of an exported one."""
        raise NotImplementedError


@functools.cache
def found() -> Mapping[str, type[Technique]]:
    """All techniques by tag: files of `techniques/`, then entry points of the group `edgepress.techniques`."""
    modules = [
        importlib.import_module(f"{techniques.__name__}.{info.name}")
        for info in pkgutil.iter_modules(techniques.__path__)
        if not info.name.startswith("_")
    ]
    modules += [_plugin(entry) for entry in entry_points(group=GROUP)]
    kinds = [_technique_in(module) for module in modules]
    return {kind.__module__.rpartition(".")[2]: kind for kind in kinds}


def _plugin(entry: EntryPoint) -> Any:
    try:
        return importlib.import_module(entry.module)
    except Exception as error:
        raise UsageError(f"technique {entry.name!r} ({entry.module}) does not import: {one_line(error)}") from error


def _technique_in(module: Any) -> type[Technique]:
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Technique) and value.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        raise UsageError(f"{module.__name__}: expected exactly one Technique in the file, got {len(kinds)}")
    return kinds[0]


def for_layer(
    options: S, layers: Mapping[str, msgspec.Struct], types: Mapping[str, msgspec.Struct], name: str, type_: str
) -> S:
    """Options of one layer: by the layer's name (a pattern), before its type, before the global ones.

    A field that an override leaves at None falls through. Of several patterns that match, the first written wins.
    """
    chosen = options
    for override in (types.get(type_), next((o for p, o in layers.items() if fnmatch.fnmatchcase(name, p)), None)):
        if override is not None:
            given = {key: value for key, value in msgspec.structs.asdict(override).items() if value is not None}
            chosen = msgspec.structs.replace(chosen, **given)
    return chosen


def check_patterns(layers: Iterable[str], types: Iterable[str], model: Mapping[str, str]) -> None:
    """Refuse an override that touches no layer; `model` maps the layers' names to their types. Raises UsageError."""
    for pattern in layers:
        if not fnmatch.filter(list(model), pattern):
            raise UsageError(f"layers.{pattern!r}: matches no layer{did_you_mean(pattern, list(model))}")
    for type_ in types:
        if type_ not in model.values():
            kinds = sorted(set(model.values()))
            raise UsageError(f"types.{type_}: no such layer; this model has {', '.join(kinds)}")
