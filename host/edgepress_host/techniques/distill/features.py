"""What networks compute inside: which layers are compared, and their outputs as features of one form."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

from edgepress_host.press.loading import did_you_mean
from edgepress_host.technique import StepFailed

_ALONG_LINES = (nn.Conv1d, nn.BatchNorm1d)
"""Layers whose sequences are (N, C, L); those of all others are (N, L, C)."""

_POOLS: dict[int, Callable[..., Tensor]] = {
    3: functional.adaptive_avg_pool1d,
    4: functional.adaptive_avg_pool2d,
    5: functional.adaptive_avg_pool3d,
}


class Seen(msgspec.Struct, frozen=True):
    """A network on a few samples: its outputs by name, and its inner layers' features in the order of execution."""

    outputs: dict[str, Tensor]
    features: dict[str, Tensor]


def look(model: nn.Module, x: Tensor) -> Seen:
    """Run a model once in evaluation mode; a layer that gives the model's output itself is no inner one.

    Raises StepFailed where an output is no tensor.
    """
    features: dict[str, Tensor] = {}
    raw: dict[str, object] = {}
    handles = [
        layer.register_forward_hook(_keeper(raw, features, name, layer))
        for name, layer in model.named_modules()
        if name
    ]
    training = model.training
    try:
        with torch.no_grad():
            outputs = model.eval()(x)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    leaves = tree_leaves(outputs)
    inner = {
        name: value
        for name, value in features.items()
        if len(value) == len(x) and not any(raw[name] is leaf for leaf in leaves)
    }
    return Seen(by_name(outputs), inner)


def by_name(outputs: object) -> dict[str, Tensor]:
    """Return a model's outputs by their names in a dictionary, or by their places in a sequence.

    >>> [*by_name((torch.zeros(1), {"box": torch.ones(1)}))]
    ['0', '1.box']
    """
    found = {}
    for path, leaf in tree_flatten_with_path(outputs)[0]:
        if not isinstance(leaf, Tensor):
            raise StepFailed(f"expected tensors as the model's outputs, got {type(leaf).__name__}")
        found[".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) or "0"] = leaf
    return found


@contextlib.contextmanager
def tapped(model: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that holds the features of these layers, (N, C, …), after each forward pass."""
    features: dict[str, Tensor] = {}
    handles = []
    for name in layers:
        layer = model.get_submodule(name)
        handles.append(layer.register_forward_hook(_keeper({}, features, name, layer)))
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def pairs_of(wanted: Mapping[str, str], learner: Iterable[str], guide: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs (learner's layer, guide's layer) that names or patterns mean.

    Each `*` of a guide's name stands for what the `*` of the learner's name matched. Raises UsageError.

    >>> pairs_of({"stack*.out": "layer*"}, ["stem", "stack1.out", "stack2.out"], ["layer1", "layer2"])
    [('stack1.out', 'layer1'), ('stack2.out', 'layer2')]
    """
    learners, guides = list(learner), list(guide)
    pairs = []
    for pattern, target in wanted.items():
        form = re.compile(re.escape(pattern).replace(r"\*", "(.*)"))
        found = [match for name in learners if (match := form.fullmatch(name))]
        if not found:
            raise UsageError(f"features.{pattern!r}: matches no inner layer{did_you_mean(pattern, learners)}")
        if target.count("*") > pattern.count("*"):
            raise UsageError(f"features.{pattern!r}: {target!r} has more * than {pattern!r}")
        for match in found:
            parts = iter(match.groups())
            name = re.sub(r"\*", lambda _, parts=parts: next(parts), target)  # type: ignore[misc]
            if name not in guides:
                raise UsageError(
                    f"features.{pattern!r}: the teacher has no inner layer {name!r}{did_you_mean(name, guides)}"
                )
            pairs.append((match.string, name))
    return pairs


def width(features: Tensor) -> int:
    """Return the number of channels."""
    return features.shape[1]


def same_places(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Average maps (N, C, …) down to the smaller of both in each direction."""
    places = [min(pair) for pair in zip(one.shape[2:], other.shape[2:], strict=True)]
    return _pooled(one, places), _pooled(other, places)


def _pooled(features: Tensor, places: list[int]) -> Tensor:
    if list(features.shape[2:]) == places:
        return features
    return _POOLS[features.ndim](features, places)


def _keeper(
    raw: dict[str, object], features: dict[str, Tensor], name: str, layer: nn.Module
) -> Callable[[nn.Module, object, object], None]:
    along_lines = any(isinstance(part, _ALONG_LINES) for part in layer.modules())

    def keep(_layer: nn.Module, _inputs: object, output: object) -> None:
        found = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if found is not None and found.ndim > 1 and found.is_floating_point():
            raw[name] = found
            features[name] = (found.movedim(2, 1) if found.ndim == 3 and not along_lines else found).float()

    return keep
