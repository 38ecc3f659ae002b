"""Where activations are quantized: pure decisions over a program's steps.

The runtimes run a layer on integers where its input and its output are quantized, the latter after the activation that
is fused with it. What lies between quantized values follows: sums of them are quantized, and operators that only move
values (pooling, reshaping) share one scale with what they move, as LiteRT's kernels ask for.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepress_host.techniques.qat.program import Node, users

_FUSED = {"aten.relu.default", "aten.relu6.default", "aten.hardtanh.default", "aten.clamp.default"}
_SUMS = {"aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"}
_MEANS = {"aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool1d.default", "aten.mean.dim"}
_JOINS = {"aten.cat.default"}
_MOVES = {
    "aten.avg_pool1d.default",
    "aten.avg_pool2d.default",
    "aten.constant_pad_nd.default",
    "aten.contiguous.default",
    "aten.expand.default",
    "aten.flatten.using_ints",
    "aten.max_pool1d.default",
    "aten.max_pool2d.default",
    "aten.pad.default",
    "aten.permute.default",
    "aten.reshape.default",
    "aten.select.int",
    "aten.slice.Tensor",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.transpose.int",
    "aten.unsqueeze.default",
    "aten.view.default",
}


def places(nodes: Sequence[Node], layers: set[str]) -> list[frozenset[str]]:
    """Return groups of steps whose values are quantized, each with one scale; `layers` are the quantized layers.

    >>> steps = [
    ...     Node("x", "input"),
    ...     Node("w", "layer", "w"),
    ...     Node("c", "call", "aten.conv2d.default", ({"node": "x"}, {"node": "w"})),
    ...     Node("r", "call", "aten.relu.default", ({"node": "c"},)),
    ... ]
    >>> [sorted(group) for group in places(steps, {"c"})]
    [['x'], ['r']]
    """
    taken = users(nodes)
    by_name = {node.name: node for node in nodes}
    quantized: set[str] = set()
    for node in nodes:
        if node.name in layers:
            quantized |= {node.inputs[0], _after(node, taken)}
    before: set[str] = set()
    while before != quantized:
        before = set(quantized)
        for node in nodes:
            quantized |= _follow(node, quantized, by_name, taken)
    return _groups(nodes, quantized)


def _follow(node: Node, quantized: set[str], by_name: dict[str, Node], taken: dict[str, list[Node]]) -> set[str]:
    """Return what else is quantized because of one step."""
    values = _values(node, by_name)
    all_in = bool(values) and all(name in quantized for name in values)
    if node.target in _MOVES | _JOINS:
        return {*values, node.name} if all_in or node.name in quantized else set()
    if node.target in _SUMS:
        return {_after(node, taken)} if all_in and len(values) == 2 else set()
    if node.target in _MEANS:
        # Both ends or none: LiteRT's converter would clip what goes into a mean to the range of what comes out.
        return {*values, node.name} if all_in or node.name in quantized else set()
    if node.target in _FUSED:
        return {node.name} if all_in else set()
    return set()


def _after(node: Node, taken: dict[str, list[Node]]) -> str:
    """Return the step behind which a layer's output is quantized: the activation that runtimes fuse with it."""
    following = taken[node.name]
    if len(following) == 1 and following[0].target in _FUSED:
        return following[0].name
    return node.name


def _values(node: Node, by_name: dict[str, Node]) -> list[str]:
    """Return the steps that a step takes activations from; sizes and parameters are none."""
    moved = node.inputs[:1] if node.target in _MOVES else node.inputs
    return [name for name in moved if by_name[name].kind != "layer"]


def _groups(nodes: Sequence[Node], quantized: set[str]) -> list[frozenset[str]]:
    by_name = {node.name: node for node in nodes}
    group = {name: {name} for name in quantized}
    for node in nodes:
        if node.target in _MOVES and node.name in quantized:
            for value in _values(node, by_name):
                joined = group[value] | group[node.name]
                group |= dict.fromkeys(joined, joined)
    found = [frozenset(group[node.name]) for node in nodes if node.name in quantized]
    return list(dict.fromkeys(found))
