"""Fold batch normalisations into the layers before them, as an exporter would."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from edgepress_host.press.structure import replace_layer
from edgepress_host.press.training import first_output, one_thread

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BEFORE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(model: nn.Module, names: Collection[str], sample: Tensor) -> list[str]:
    """Fold into the named layers where that changes no output; changes `model`, and returns the layers' names.

    A normalisation belongs to the layer whose output it takes when `sample` (B, …) passes the model.
    """
    with one_thread(), torch.no_grad():
        model.eval()
        folded = []
        for before, behind in _pairs(model, sample).items():
            layer, norm = model.get_submodule(before), model.get_submodule(behind)
            if before not in names:
                continue
            assert isinstance(layer, _BEFORE)
            assert isinstance(norm, _NORMS)
            wanted = first_output(model(sample))
            replace_layer(model, before, _folded(layer, norm))
            replace_layer(model, behind, nn.Identity())
            if torch.allclose(first_output(model(sample)), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
                folded.append(before)
            else:
                # The layer's own output is used elsewhere, too.
                replace_layer(model, before, layer)
                replace_layer(model, behind, norm)
    return folded


def _pairs(model: nn.Module, sample: Tensor) -> dict[str, str]:
    """Names of the layers, each with that of the normalisation which takes its output."""
    made: list[tuple[Tensor, str]] = []
    pairs: dict[str, str] = {}
    calls: list[str] = []

    def out(name: str, output: Tensor) -> None:
        calls.append(name)
        made.append((output, name))

    def taken(name: str, given: tuple[Tensor, ...]) -> None:
        calls.append(name)
        pairs.update({source: name for output, source in made if given and output is given[0]})

    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: out(name, output))
        for name, layer in model.named_modules()
        if type(layer) in _BEFORE and not (isinstance(layer, _TRANSPOSED) and layer.groups > 1)
    ]
    hooks += [
        norm.register_forward_pre_hook(lambda _, given, name=name: taken(name, given))
        for name, norm in model.named_modules()
        if isinstance(norm, _NORMS) and norm.running_mean is not None
    ]
    try:
        model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return {source: name for source, name in pairs.items() if calls.count(source) == calls.count(name) == 1}


def _folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Return the layer that does both: its weights scaled by channel, its bias moved."""
    assert isinstance(layer, _BEFORE)
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
    result = copy.deepcopy(layer)
    result.weight = nn.Parameter((layer.weight.double() * scale.reshape(shape)).float())
    result.bias = nn.Parameter(bias.float())
    return result
