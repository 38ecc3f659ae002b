"""A model as a list of ATen operators that can be written down: what quantizers are put into, at any place.

Quantizers belong behind additions and activations, too, where a user's forward pass calls a function and has no layer.
So the model is captured by torch.export, and its graph is a plain attribute (JSON) of a module that runs it; the graph
can name operators of ATen and of Python's `operator`, and nothing else.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from edgepress_host.press.structure import buildable

BASE = f"{__name__}:Program"
"""What a written-down program is built again from."""

_OPERATOR = "operator."
_ATEN = "aten."
_NAMED = (torch.dtype, torch.memory_format, torch.layout)


class Node(msgspec.Struct, frozen=True):
    """One step: an input, a call of an operator, a layer below the program, or what the program returns.

    In `args` and `kwargs`, `{"node": name}` stands for another step's value (see `encoded`).
    """

    name: str
    kind: Literal["input", "call", "layer", "output"]
    target: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the steps whose values this one takes, each once."""
        return tuple(dict.fromkeys(_names((self.args, self.kwargs))))


@buildable
class Free(nn.Module):
    """A parameter that no quantizer touches."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(0))

    def forward(self) -> Tensor:
        """Return the parameter."""
        return self.value


@buildable
class Fixed(nn.Module):
    """A buffer or constant."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.empty(0))

    def forward(self) -> Tensor:
        """Return the constant."""
        return self.value


class Program(nn.Module):
    """Runs the nodes of `graph`; parameters, constants and quantizers are leaf layers below it."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = "[]"

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The steps in their order."""
        return _parsed(self.graph)

    def rewrite(self, nodes: Sequence[Node]) -> None:
        """Take these steps instead, in place; layers that no step names any more go."""
        self.graph = msgspec.json.encode(nodes).decode()
        named = {node.target for node in nodes if node.kind == "layer"}
        for name in [name for name, _ in self.named_children() if name not in named]:
            delattr(self, name)

    def forward(self, x: Tensor) -> Any:
        """Return what the captured model returns."""
        return self.run(x, lambda _name, _value: None)

    def run(self, x: Tensor, watch: Callable[[str, Any], None]) -> Any:
        """Run, and show each step's name and value to `watch`."""
        values: dict[str, Any] = {}
        for node in self.nodes:
            if node.kind == "output":
                return _decoded(node.args[0], values)
            if node.kind == "input":
                values[node.name] = x
            else:
                work = self.get_submodule(node.target) if node.kind == "layer" else _function(node.target)
                args = [_decoded(arg, values) for arg in node.args]
                values[node.name] = work(*args, **{key: _decoded(arg, values) for key, arg in node.kwargs.items()})
            watch(node.name, values[node.name])
        raise ValueError("a program without an output")


def users(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Return the steps that take each step's value."""
    found: dict[str, list[Node]] = {node.name: [] for node in nodes}
    for node in nodes:
        for name in node.inputs:
            found[name].append(node)
    return found


def renamed(node: Node, names: dict[str, str]) -> Node:
    """Return a step that takes other steps' values in place of some.

    >>> renamed(Node("b", "call", "aten.relu.default", ({"node": "a"},)), {"a": "c"}).inputs
    ('c',)
    """
    args = tuple(_renamed(arg, names) for arg in node.args)
    return msgspec.structs.replace(
        node, args=args, kwargs={key: _renamed(arg, names) for key, arg in node.kwargs.items()}
    )


def encoded(value: Any, name_of: Callable[[torch.fx.Node], str]) -> Any:
    """Turn an argument of a torch.fx node into JSON. Raises ValueError for what has no place there."""
    match value:
        case torch.fx.Node():
            return {"node": name_of(value)}
        case torch.device():
            return {"device": str(value)}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case tuple():
            return {"tuple": [encoded(item, name_of) for item in value]}
        case list():
            return [encoded(item, name_of) for item in value]
        case dict():
            return {"dict": {key: encoded(item, name_of) for key, item in value.items()}}
        case _ if isinstance(value, _NAMED):
            return {"torch": str(value).removeprefix("torch.")}
    raise ValueError(f"an argument of type {type(value).__name__}")


def target_of(function: Any) -> str:
    """Name an operator as a graph does. Raises ValueError for one that a graph cannot name."""
    if getattr(function, "__module__", "") == "_operator":
        return f"{_OPERATOR}{function.__name__}"
    if str(function).startswith(_ATEN):
        return str(function)
    raise ValueError(f"the operator {getattr(function, '__name__', function)}")


def _decoded(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, values) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "node":
            return values[inner]
        case "tuple":
            return tuple(_decoded(item, values) for item in inner)
        case "dict":
            return {key: _decoded(item, values) for key, item in inner.items()}
        case "device":
            return torch.device(inner)
        case "float":
            return float(inner)
        case "torch" if isinstance(getattr(torch, inner), _NAMED):
            return getattr(torch, inner)
    raise ValueError(f"an argument of the kind {kind}")


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        if isinstance(value.get("node"), str):
            return [value["node"]]
        return [name for item in value.values() for name in _names(item)]
    return [name for item in value for name in _names(item)] if isinstance(value, list | tuple) else []


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        if isinstance(value.get("node"), str):
            return {"node": names.get(value["node"], value["node"])}
        return {key: _renamed(item, names) for key, item in value.items()}
    return [_renamed(item, names) for item in value] if isinstance(value, list | tuple) else value


@functools.lru_cache(maxsize=16)
def _parsed(graph: str) -> tuple[Node, ...]:
    return msgspec.json.decode(graph, type=tuple[Node, ...])


@functools.cache
def _function(target: str) -> Callable[..., Any]:
    if target.startswith(_OPERATOR):
        found: Callable[..., Any] = getattr(operator, target.removeprefix(_OPERATOR))
        return found
    space, packet, overload = target.split(".")
    if f"{space}." != _ATEN:
        raise ValueError(f"the operator {target}")
    return getattr(getattr(torch.ops.aten, packet), overload)  # type: ignore[no-any-return]
