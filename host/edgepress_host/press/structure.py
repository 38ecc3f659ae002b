"""Write a pressed torch module down without pickle, and build it again from the original.

A pickle would run whatever code a cache file holds. So a module is kept as its tensors (safetensors) and a list of
the plain attributes of its layers (JSON); it is rebuilt on a copy of the module that it came from, by giving layers
their new sizes. The digest of the result decides whether that worked.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from edgepress_host.press import code

Plain = bool | int | float | str | tuple[int, ...] | None
_COMMON = frozenset(vars(nn.Module()))
_HAS_BIAS = "has_bias"
_KINDS: dict[str, Callable[..., nn.Module]] = {"Linear": nn.Linear, "Conv2d": nn.Conv2d}


class Layer(msgspec.Struct, frozen=True):
    """A module without children: its place, its class and its plain attributes (widths, strides, …)."""

    path: str
    kind: str
    plain: dict[str, Any]


def digest(model: nn.Module) -> str:
    """SHA-256 of structure, weights, plain attributes and the source of the user's own module classes."""
    found = hashlib.sha256(repr(model).encode())
    for path, layer in model.named_modules():
        found.update(f"{path}{sorted(_settings(layer).items())}".encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    classes = {type(module).__module__ for module in model.modules()}
    found.update(code.fingerprint(name for name in classes if name.partition(".")[0] != "torch").encode())
    return found.hexdigest()


def describe(model: nn.Module) -> bytes:
    """Return the layers as JSON."""
    layers = [
        Layer(path=path, kind=type(layer).__name__, plain=_plain(layer))
        for path, layer in model.named_modules()
        if not list(layer.children())
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
    _insert_factors(model, described)
    for layer in described:
        module = model.get_submodule(layer.path)
        if type(module).__name__ != layer.kind:
            raise ValueError(f"{layer.path} is a {type(module).__name__}, not a {layer.kind}")
        for name in layer.plain.keys() - {_HAS_BIAS}:
            value = layer.plain[name]
            setattr(module, name, tuple(value) if isinstance(value, list) else value)
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


def _insert_factors(model: nn.Module, described: list[Layer]) -> None:
    """Where a description goes deeper than the model, a layer was replaced by a sequence of new ones."""
    known = dict(model.named_modules())
    groups: dict[str, list[Layer]] = {}
    for layer in described:
        if layer.path not in known:
            groups.setdefault(layer.path.rpartition(".")[0], []).append(layer)
    for path, layers in groups.items():
        replace_layer(model, path, nn.Sequential(*(_new(layer.kind, layer.plain) for layer in layers)))


def _new(kind: str, plain: dict[str, Any]) -> nn.Module:
    if kind not in _KINDS:
        raise ValueError(f"cannot build a {kind}")
    names = set(inspect.signature(_KINDS[kind]).parameters) - {"self", "bias", "device", "dtype"}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items() if name in names}
    return _KINDS[kind](**given, bias=plain[_HAS_BIAS])


def _plain(layer: nn.Module) -> dict[str, Plain]:
    found = {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }
    if type(layer).__name__ in _KINDS:
        found[_HAS_BIAS] = layer.bias is not None
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
