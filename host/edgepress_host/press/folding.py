"""Fold batch normalisation into the layers before it, as exporters do, so that a step works on what will run."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

from edgepress_host.press.structure import replace_layer
from edgepress_host.press.tracing import CONVOLUTIONS, Traced, operator

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OPERATORS = CONVOLUTIONS | {"linear", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}


def fold_batch_norms(model: nn.Module, sample: Tensor, names: Collection[str] | None = None) -> list[str]:
    """Fold into the named layers (None: all) each normalisation that alone takes such a layer's output, in place.

    `sample` (2, …) is what the model is traced with. Returns the layers' names, in the order in which they run. Layers
    and normalisations that run twice, share their weights, or give an output of the model stay as they are.
    """
    if not any(isinstance(module, _NORMS) for module in model.modules()):
        return []
    traced = Traced.of(model, sample)
    folded = []
    for node in traced.nodes(frozenset({"batch_norm"})):
        before, mean = node.args[0], traced.parameter(node, 3)
        if not isinstance(before, fx.Node) or operator(before) not in _OPERATORS or len(before.users) != 1:
            continue
        weight = traced.parameter(before, 1)
        if weight is None or mean is None:
            continue
        (name, _, own), place = weight.rpartition("."), mean.rpartition(".")[0]
        layer, norm = model.get_submodule(name), model.get_submodule(place)
        grouped = isinstance(layer, _TRANSPOSED) and layer.groups > 1
        if own != "weight" or grouped or not isinstance(layer, _LAYERS) or not isinstance(norm, _NORMS):
            continue
        if names is None or name in names:
            _fold(layer, norm)
            replace_layer(model, place, nn.Identity())
            folded.append(name)
    return folded


@torch.no_grad()
def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """Let the layer do both: its weights scaled by channel, its bias moved."""
    assert isinstance(layer, _LAYERS)
    assert isinstance(norm, _NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    moved = (0.0 if layer.bias is None else layer.bias.double()) - norm.running_mean.double()
    bias = moved * scale + (0.0 if norm.bias is None else norm.bias.double())
    outputs = 1 if isinstance(layer, _TRANSPOSED) else 0
    shape = [-1 if axis == outputs else 1 for axis in range(layer.weight.ndim)]
    layer.weight = nn.Parameter((layer.weight.double() * scale.reshape(shape)).float())
    layer.bias = nn.Parameter(bias.float())
