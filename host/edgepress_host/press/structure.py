"""Write a pressed torch module down without pickle, and build it again from the original.

A pickle would run whatever code a cache file holds. So a module is kept as its tensors (safetensors) and a list of
the plain attributes of its layers (JSON); it is rebuilt on a copy of the module that it came from, by giving layers
their new sizes, and by building those that are new: layers of torch.nn, and those that `buildable` names. The digest
of the result decides whether that worked.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from typing import Any, TypeVar

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from edgepress_host.press import code

Plain = bool | int | float | str | tuple[int, ...] | None
M = TypeVar("M", bound=type[nn.Module])
_COMMON = frozenset(vars(nn.Module()))
_HAS_BIAS = "has_bias"
_KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Identity, nn.Flatten),
        *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh),
    )
}


class Layer(msgspec.Struct, frozen=True):
    """A module: its place, its class, its plain attributes (widths, strides, …), and whether it has none below it."""

    path: str
    kind: str
    plain: dict[str, Any]
    leaf: bool


def buildable(kind: M) -> M:
    """Let a layer of edgepress's own be built again: a class decorator.

    The layer has no modules below it, and the arguments of its constructor are attributes of the same names; an
    argument `bias` is a bool that tells whether the attribute `bias` is a tensor.
    """
    _KINDS[kind.__name__] = kind
    return kind


def digest(model: nn.Module) -> str:
    """SHA-256 of structure, weights, plain attributes and the source of the user's own module classes."""
    found = hashlib.sha256(repr(model).encode())
    for path, layer in model.named_modules():
        found.update(f"{path}{sorted(_settings(layer).items())}".encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        # As bytes: numpy has no bfloat16.
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    classes = {type(module).__module__ for module in model.modules()}
    found.update(code.fingerprint(name for name in classes if name.partition(".")[0] != "torch").encode())
    return found.hexdigest()


def describe(model: nn.Module) -> bytes:
    """Return the layers as JSON."""
    layers = [
        Layer(path=path, kind=type(layer).__name__, plain=_plain(layer), leaf=not list(layer.children()))
        for path, layer in model.named_modules()
    ]
    return msgspec.json.encode(layers)


def tensors(model: nn.Module) -> bytes:
    """All weights and buffers as safetensors."""
    return safetensors.torch.save({name: value.detach().contiguous().clone() for name, value in _own_state(model)})


def rebuild(base: nn.Module, layers: bytes, state: bytes) -> nn.Module:
    """Build the described module from a copy of `base`, which holds the same layers in other sizes.

    Raises ValueError (msgspec's and safetensors' errors among them), KeyError or AttributeError where the
    description does not fit the base.
    """
    model = copy.deepcopy(base)
    described = msgspec.json.decode(layers, type=list[Layer])
    for layer in described:
        _fit_in(model, layer)
    _take_away(model, {layer.path for layer in described})
    values = safetensors.torch.load(state)
    for name, current in list(_own_state(model)):
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        if isinstance(current, nn.Parameter):
            setattr(module, leaf, nn.Parameter(values[name], requires_grad=current.requires_grad))
        else:
            module.register_buffer(leaf, values[name])
    return model.eval()


def replace_layer(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put `layer` at `path` of `model`, in place."""
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def sharers(model: nn.Module, *, aliases: bool = True) -> dict[str, list[str]]:
    """Return the layers that hold a parameter which others hold, too, with the others' names.

    With `aliases`, a layer that the model has under two names is two that share; without, it is one.
    """
    held = dict(model.named_modules(remove_duplicate=not aliases))
    places: dict[int, list[str]] = {}
    for name, layer in held.items():
        for weight in layer.parameters(recurse=False):
            places.setdefault(id(weight), []).append(name)
    found = {
        name: sorted({other for weight in layer.parameters(recurse=False) for other in places[id(weight)]} - {name})
        for name, layer in held.items()
    }
    return {name: others for name, others in found.items() if others}


def _fit_in(model: nn.Module, layer: Layer) -> None:
    """Give the module at a described place its attributes; one of another kind gives way to a new one."""
    if layer.path not in dict(model.named_modules()) or (
        type(model.get_submodule(layer.path)).__name__ != layer.kind
        or (layer.leaf and list(model.get_submodule(layer.path).children()))
        or _bias_differs(model.get_submodule(layer.path), layer)
    ):
        replace_layer(model, layer.path, _new(layer))
    module = model.get_submodule(layer.path)
    for name in layer.plain.keys() - {_HAS_BIAS}:
        value = layer.plain[name]
        setattr(module, name, tuple(value) if isinstance(value, list) else value)


def _bias_differs(module: nn.Module, layer: Layer) -> bool:
    """Tell whether a layer gained or lost its bias: folded batch normalization leaves one where there was none."""
    return (
        layer.leaf
        and _HAS_BIAS in layer.plain
        and layer.plain[_HAS_BIAS] != (getattr(module, "bias", None) is not None)
    )


def _take_away(model: nn.Module, described: set[str]) -> None:
    """Remove what the base has and the described model has not."""
    for path in sorted(dict(model.named_modules()).keys() - described):
        parent, _, leaf = path.rpartition(".")
        # What was below a module that is gone already is gone, too.
        if path in dict(model.named_modules()):
            delattr(model.get_submodule(parent), leaf)


def _new(layer: Layer) -> nn.Module:
    """Build a layer; one with others below it is a sequence, which they then fill in their order."""
    if not layer.leaf and layer.kind == nn.Sequential.__name__:
        return nn.Sequential()
    if layer.kind not in _KINDS:
        raise ValueError(f"cannot build a {layer.kind}")
    wanted = inspect.signature(_KINDS[layer.kind]).parameters.keys() - {"bias", "device", "dtype"}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in layer.plain.items()}
    chosen = {name: value for name, value in given.items() if name in wanted}
    if "bias" in inspect.signature(_KINDS[layer.kind]).parameters:
        chosen["bias"] = layer.plain[_HAS_BIAS]
    return _KINDS[layer.kind](**chosen)


def _plain(layer: nn.Module) -> dict[str, Plain]:
    found = {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }
    if "bias" in inspect.signature(type(layer)).parameters:
        found[_HAS_BIAS] = getattr(layer, "bias", None) is not None
    return found


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str) or (
        isinstance(value, tuple) and all(isinstance(item, int) for item in value)
    )


def _own_state(model: nn.Module) -> list[tuple[str, Tensor]]:
    persistent = set(model.state_dict())
    return [
        (name, value)
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if name in persistent and isinstance(value, torch.Tensor)
    ]


def _settings(layer: nn.Module) -> dict[str, Any]:
    """Attributes of a layer's own that a forward pass may go by: a scale, a flag, a list of widths."""
    return {name: value for name, value in vars(layer).items() if name not in _COMMON and _is_settled(value)}


def _is_settled(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_settled(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(_is_settled(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)
