"""How much a channel matters: torch-pruning's scores where they are the papers', and our own where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.pruner import function, importance

_OUT = (function.prune_conv_out_channels, function.prune_linear_out_channels)
_IN = (function.prune_conv_in_channels, function.prune_linear_in_channels)

Backward = Callable[[nn.Module], Iterator[None]]


def importance_of(name: str, model: nn.Module, backward: Backward) -> Any:
    """Return torch-pruning's kind of callable, group → scores, for the model as it is now."""
    if name == "taylor":
        return Taylor(model, backward)
    return {
        "l1": lambda: importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: importance.GroupMagnitudeImportance(p=2),
        "bn_scale": importance.BNScaleImportance,
        "lamp": importance.LAMPImportance,
        "fpgm": GeometricMedian,
    }[name]()


class GeometricMedian(importance.GroupMagnitudeImportance):  # type: ignore[misc]
    """Sum of a filter's distances from all others of its layer; the least is the nearest to their geometric median.

    He et al., Filter Pruning via Geometric Median, CVPR 2019, equation 6. Of layers that are coupled, scores are
    averaged as multiples of the layer's mean.
    """

    def __call__(self, group: Any) -> Tensor | None:
        """Return a score per channel of the group, (channels,)."""
        scores, places = [], []
        for item in group:
            if item.dep.handler not in _OUT:
                continue
            layer = item.dep.target.module
            weight = layer.weight.detach()
            filters = (weight.transpose(0, 1) if getattr(layer, "transposed", False) else weight)[item.idxs].flatten(1)
            scores.append(self._normalize(torch.cdist(filters, filters).sum(dim=1), "mean"))
            places.append(item.root_idxs)
        return self._normalize(self._reduce(scores, places), "mean") if scores else None


class Taylor:
    """Square of what the loss would change by without a channel, to first order, averaged over batches.

    Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, equation 8, with the gate where
    other layers read the channel: there the change is the sum of weight times gradient over the weights that read it.
    """

    def __init__(self, model: nn.Module, backward: Backward) -> None:
        self._read: dict[nn.Module, list[Tensor]] = {}
        for _ in backward(model):
            for layer in model.modules():
                weight = getattr(layer, "weight", None)
                if isinstance(weight, Tensor) and weight.ndim > 1 and weight.grad is not None:
                    self._read.setdefault(layer, []).append(_by_input(layer, weight.detach() * weight.grad))

    def __call__(self, group: Any) -> Tensor | None:
        """Return a score per channel of the group, (channels,); None where no layer reads it."""
        changes = None
        for item in group:
            layer = item.dep.target.module
            if item.dep.handler not in _IN or layer not in self._read:
                continue
            seen = torch.stack(self._read[layer])[:, item.idxs]
            if changes is None:
                changes = torch.zeros(len(seen), len(group[0].idxs))
            changes.index_add_(1, torch.tensor(item.root_idxs), seen)
        if changes is None:
            return None
        scores = changes.square().mean(dim=0)
        return scores / scores.mean().clamp_min(1e-20)


def _by_input(layer: nn.Module, product: Tensor) -> Tensor:
    """Sum over all weights that read an input channel; shape (inputs,)."""
    if getattr(layer, "transposed", False):
        return product.flatten(1).sum(dim=1)
    if product.ndim == 2:
        return product.sum(dim=0)
    by_filter = product.flatten(2).sum(dim=2)
    return by_filter.reshape(int(layer.groups), -1, by_filter.shape[1]).sum(dim=1).flatten()  # type: ignore[arg-type]
