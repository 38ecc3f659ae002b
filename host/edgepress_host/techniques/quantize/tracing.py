"""The module as a graph of operators: which weight feeds which, and batch normalization folded into weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from edgepress_host.press.structure import replace_layer

CONVOLUTIONS = frozenset({"conv1d", "conv2d"})
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
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


def fold_batch_norms(model: nn.Module, traced: Traced) -> None:
    """Fold each batch normalization that follows a convolution or dense layer alone into its weight, in place."""
    for node in traced.nodes(frozenset({"batch_norm"})):
        before = node.args[0]
        mean = traced.parameter(node, 3)
        if (
            not isinstance(before, fx.Node)
            or operator(before) not in WEIGHTED
            or len(before.users) != 1
            or mean is None
        ):
            continue
        weight = traced.parameter(before, 1)
        norm = model.get_submodule(mean.rpartition(".")[0])
        if weight is None or not weight.endswith(".weight") or not isinstance(norm, NORMS):
            continue
        layer = model.get_submodule(weight.rpartition(".")[0])
        assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
        _fold(layer, norm)
        replace_layer(model, mean.rpartition(".")[0], nn.Identity())


def _fold(layer: nn.Linear | nn.Conv1d | nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
