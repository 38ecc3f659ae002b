"""A module as a graph of operators: which weight feeds which, and who takes what comes out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

CONVOLUTIONS = frozenset({"conv1d", "conv2d"})
WEIGHTED = CONVOLUTIONS | {"linear"}


class Traced(NamedTuple):
    """A module's forward pass by torch.export; `names` maps graph inputs to names of parameters and buffers."""

    graph: fx.Graph
    names: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> Traced:
        """Trace a model on samples (N, …)."""
        program = torch.export.export(copy.deepcopy(model).eval(), (x,), strict=False)
        signature = program.graph_signature
        return cls(program.graph, {**signature.inputs_to_parameters, **signature.inputs_to_buffers})

    def nodes(self, kinds: frozenset[str]) -> Iterator[fx.Node]:
        """Yield the operators of some kinds, in their order."""
        yield from (node for node in self.graph.nodes if operator(node) in kinds)

    def parameter(self, node: fx.Node, place: int) -> str | None:
        """Name of the parameter or buffer that a node has as an argument; None for what is none, or is used twice."""
        found = node.args[place] if len(node.args) > place else None
        if not isinstance(found, fx.Node) or found.name not in self.names or len(found.users) != 1:
            return None
        return self.names[found.name]


def operator(node: fx.Node) -> str:
    """Name of the ATen operator that a node calls, such as conv2d.

    >>> operator(fx.Graph().placeholder("x"))
    ''
    """
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, OpOverload) else ""


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of what a node returns."""
    value = node.meta["val"]
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()
