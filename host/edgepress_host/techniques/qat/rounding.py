"""Quantizers into a program, and out of it what they become after training."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
import numpy as np
import torch
from torch import nn

from edgepress_host.techniques.qat.capture import WEIGHTED, Captured
from edgepress_host.techniques.qat.grids import LearnedRange, LearnedWeight
from edgepress_host.techniques.qat.placing import places
from edgepress_host.techniques.qat.program import Free, Node, Program, renamed

_BATCH = 32


class Weighted(msgspec.Struct, frozen=True):
    """A layer with a weight that can be quantized: its name and type, the program's layer of it, and its steps."""

    name: str
    type_: str
    weight: str
    steps: tuple[str, ...]


def weighted(captured: Captured) -> list[Weighted]:
    """Return convolutions and dense layers in the order in which they run; a weight used twice is one layer."""
    program = captured.program
    held = {node.name: node.target for node in program.nodes if node.kind == "layer"}
    steps: dict[str, list[str]] = {}
    for node in program.nodes:
        if node.target in WEIGHTED and isinstance(_layer(program, held.get(node.inputs[1])), Free):
            steps.setdefault(held[node.inputs[1]], []).append(node.name)
    return [Weighted(*captured.owners[weight], weight, tuple(names)) for weight, names in steps.items()]


def others(captured: Captured, layers: Collection[Weighted]) -> list[str]:
    """Return the layers with weight matrices that cannot be quantized, with their types."""
    taken = {layer.weight for layer in layers}
    matrices = [
        name for name, layer in captured.program.named_children() if isinstance(layer, Free) and layer.value.ndim > 1
    ]
    owners = (captured.owners[name] for name in matrices if name not in taken)
    return [f"{name} ({type_})" for name, type_ in dict.fromkeys(owners) if name]


def round_weights(program: Program, bits: Mapping[str, int]) -> None:
    """Let the program's layers learn with weights of so many bits, in place."""
    for name, width in bits.items():
        held = program.get_submodule(name)
        assert isinstance(held, Free)
        setattr(program, name, LearnedWeight(held.value, width))


def round_activations(program: Program, layers: Collection[Weighted], samples: np.ndarray) -> None:
    """Quantize what goes into and comes out of the layers, in place; ranges start from `samples`, (N, …)."""
    groups = places(program.nodes, {step for layer in layers for step in layer.steps})
    seen = _ranges(program, {name for group in groups for name in group}, samples)
    nodes = list(program.nodes)
    for group in groups:
        first = next(node.name for node in nodes if node.name in group)
        name = f"{first}__grid"
        low, high = min(seen[member][0] for member in group), max(seen[member][1] for member in group)
        program.add_module(name, LearnedRange(low, high))
        nodes = _rounded_after(nodes, group, name)
    program.rewrite(nodes)


def hold_scales(program: Program) -> None:
    """Keep all scales and zero points where they start; gradients still pass straight through the rounding."""
    for layer in program.children():
        if isinstance(layer, LearnedWeight | LearnedRange):
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_(name == "weight")


def freeze(program: Program) -> Program:
    """Replace the quantizers that learned by what exports, in place."""
    for name, layer in list(program.named_children()):
        if isinstance(layer, LearnedWeight | LearnedRange):
            setattr(program, name, layer.frozen())
    return program.eval()


def _rounded_after(nodes: list[Node], group: frozenset[str], quantizer: str) -> list[Node]:
    """Put the quantizer behind each of the steps; those that took their values take the rounded ones."""
    names = {name: f"{name}__rounded" for name in group}
    made: list[Node] = []
    for node in nodes:
        made.append(renamed(node, names))
        if node.name in group:
            made.append(Node(names[node.name], "layer", quantizer, ({"node": node.name},)))
    return made


def _ranges(program: Program, wanted: set[str], samples: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the least and the largest value of each step's output over all samples."""
    seen: dict[str, tuple[float, float]] = {}

    def watch(name: str, value: object) -> None:
        if name in wanted:
            assert isinstance(value, torch.Tensor)
            low, high = seen.get(name, (np.inf, -np.inf))
            seen[name] = min(low, float(value.min())), max(high, float(value.max()))

    program.eval()
    with torch.no_grad():
        for start in range(0, len(samples), _BATCH):
            program.run(torch.from_numpy(np.array(samples[start : start + _BATCH])), watch)
    return seen


def _layer(program: Program, name: str | None) -> nn.Module | None:
    return None if name is None else program.get_submodule(name)
