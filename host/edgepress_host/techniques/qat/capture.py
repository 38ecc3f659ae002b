"""From a torch module to a program, captured by torch.export."""

from __future__ import annotations

import copy
import re
from typing import Any

import msgspec
import numpy as np
import torch
from edgepress_protocol.errors import EdgepressError
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from edgepress_host.press.folding import fold_batch_norms
from edgepress_host.press.quiet import quiet
from edgepress_host.techniques.qat.program import Fixed, Free, Node, Program, encoded, renamed, target_of
from edgepress_host.text import one_line

WEIGHTED = {
    "aten.conv1d.default",
    "aten.conv1d.padding",
    "aten.conv2d.default",
    "aten.conv2d.padding",
    "aten.linear.default",
}
"""Operators (x, weight, bias, …) whose weights are quantized."""

_NOTHING = {"aten.dropout.default", "aten.dropout_.default", "aten.alias.default", "aten.detach.default"}
"""Operators that return their input in evaluation mode."""

_ASSERTIONS = re.compile(r"aten\.(_assert|sym_constrain)")


class Captured(msgspec.Struct, frozen=True):
    """A program, and the names that its layers have in the module: program layer → (layer, type) of its parameter."""

    program: Program
    owners: dict[str, tuple[str, str]]


class NotCaptured(EdgepressError):  # noqa: N818 - it names what happened to the model
    """A model whose forward pass cannot be written down as a list of operators."""


def capture(model: nn.Module, example: np.ndarray) -> Captured:
    """Return `model`, in evaluation mode, as a program; `example` has shape (2, …). Raises NotCaptured.

    Batch normalisation is folded into the layers before it: QAT then trains what the runtime will run.
    """
    sample = torch.from_numpy(np.array(example))
    whole = copy.deepcopy(model).eval()
    try:
        with quiet():
            fold_batch_norms(whole, sample)
            exported = torch.export.export(whole, (sample,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        return _written(exported, whole)
    except Exception as error:
        raise NotCaptured(
            f"the model's forward pass cannot be captured: {one_line(error)}; QAT takes what torch.export takes"
        ) from error


def _written(exported: torch.export.ExportedProgram, model: nn.Module) -> Captured:
    held = {
        spec.arg.name: spec.target
        for spec in exported.graph_signature.input_specs
        if spec.target is not None and hasattr(spec.arg, "name")
    }
    values: dict[str, Any] = {**exported.constants, **exported.state_dict}
    program, owners = Program(), {}
    nodes: list[Node] = []
    stands_for: dict[str, str] = {}
    for node in exported.graph.nodes:

        def name_of(other: torch.fx.Node) -> str:
            return stands_for.get(other.name, other.name)

        if node.op == "placeholder" and node.name in held:
            name = f"{'' if '.' in held[node.name] else 'own__'}{held[node.name].replace('.', '__')}"
            program.add_module(name, _holder(values[held[node.name]]))
            nodes.append(Node(node.name, "layer", name))
            layer = held[node.name].rpartition(".")[0]
            owners[name] = layer, type(model.get_submodule(layer)).__name__ if layer else type(model).__name__
        elif node.op == "placeholder":
            nodes.append(Node(node.name, "input"))
        elif node.op == "output":
            whole = tree_unflatten([*node.args[0]], exported.call_spec.out_spec)
            nodes.append(Node(node.name, "output", args=(encoded(whole, name_of),)))
        elif node.op != "call_function":
            raise ValueError(f"a step of the kind {node.op}")
        elif str(node.target) in _NOTHING:
            stands_for[node.name] = name_of(node.args[0])
        elif not _ASSERTIONS.match(str(node.target)):
            args = tuple(encoded(arg, name_of) for arg in node.args)
            kwargs = {key: encoded(arg, name_of) for key, arg in node.kwargs.items()}
            nodes.append(Node(node.name, "call", target_of(node.target), args, kwargs))
    program.rewrite(_used(_out_of_place(nodes)))
    return Captured(program, {name: owner for name, owner in owners.items() if hasattr(program, name)})


def _holder(value: Tensor) -> nn.Module:
    if isinstance(value, nn.Parameter):
        free = Free()
        free.value = nn.Parameter(value.detach().clone())
        return free
    fixed = Fixed()
    fixed.value = value.detach().clone()
    return fixed


def _out_of_place(nodes: list[Node]) -> list[Node]:
    """Replace operators such as relu_ by those that leave their input: later steps then take the result instead."""
    changed: list[Node] = []
    now: dict[str, str] = {}
    for node in nodes:
        current = renamed(node, now)
        _, packet, overload = node.target.split(".") if node.target.startswith("aten.") else ("", "", "")
        if packet.endswith("_") and not packet.endswith("__") and hasattr(torch.ops.aten, packet.rstrip("_")):
            (before, *_) = current.inputs
            now = {old: node.name if new == before else new for old, new in now.items()} | {before: node.name}
            current = msgspec.structs.replace(current, target=f"aten.{packet.rstrip('_')}.{overload}")
        changed.append(current)
    return changed


def _used(nodes: list[Node]) -> list[Node]:
    """Leave out steps whose value nobody takes; inputs stay."""
    wanted: set[str] = set()
    kept = []
    for node in reversed(nodes):
        if node.kind in ("input", "output") or node.name in wanted:
            wanted |= set(node.inputs)
            kept.append(node)
    return kept[::-1]
