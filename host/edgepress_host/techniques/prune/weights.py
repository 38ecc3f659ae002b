"""Which single weights go: by a ratio or a threshold, within each layer or over the model, or N of every M."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgepress_host.technique import StepFailed
from edgepress_host.techniques.prune.attention import NarrowAttention
from edgepress_host.techniques.prune.plan import PRUNABLE, RECURRENT, Wanted, share_of

SPARSE = (*PRUNABLE, *RECURRENT, nn.MultiheadAttention, NarrowAttention)
"""Layers whose weight matrices may get zeros."""


def unknown(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with weight matrices of kinds that are not for pruning here, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if not isinstance(layer, SPARSE)
        and not any(layer.children())
        and any(weight.ndim > 1 for weight in layer.parameters(recurse=False))
    }


class Rule(NamedTuple):
    """How weights are ranked: in which scope, by LAMP's score instead of the magnitude, or N kept of every M."""

    over_model: bool
    lamp: bool
    pattern: tuple[int, int] | None


class Target(NamedTuple):
    """A weight matrix, and what it is to lose; `alone` where it is ranked by itself in any scope."""

    name: str
    weight: nn.Parameter
    inputs: int
    """The axis of the inputs."""

    ratio: float
    threshold: float | None
    alone: bool


class WeightCut:
    """Makes zeros in a model's weights, in place, by a share of the way to the wanted ratios at each call."""

    def __init__(
        self, layers: Mapping[str, nn.Module], wanted: Mapping[str, Wanted], rule: Rule, note: Callable[[str], None]
    ) -> None:
        """Find the weights. Raises StepFailed where there are none, or none that the pattern fits."""
        self.rule = rule
        self.chosen = targets(layers, wanted)
        if rule.pattern is not None:
            odd = [target.name for target in self.chosen if target.weight.shape[target.inputs] % rule.pattern[1]]
            self.chosen = [target for target in self.chosen if target.name not in odd]
            of = f"no multiple of {rule.pattern[1]} inputs"
            if not self.chosen:
                raise StepFailed(f"pattern: every layer has {of}: {', '.join(odd)}; take a ratio")
            if odd:
                note(f"left as they are, with {of}: {', '.join(odd)}")

    @torch.no_grad()
    def __call__(self, share: float) -> None:
        """Set to zero what this round is to take."""
        weights = [target.weight for target in self.chosen]
        for weight, mask in zip(weights, self.masks(weights, lambda ratio: share_of(ratio, share)), strict=True):
            weight.mul_(mask).add_(0.0)  # a negative weight times zero is -0.0, whose bits are not those of 0.0

    def masks(self, weights: Sequence[Tensor], now: Callable[[float], float]) -> list[Tensor]:
        """Return what stays of these stand-ins of the weights, where `now` says how far a ratio has come."""
        return masks(self.chosen, weights, self.rule, now)


def targets(layers: Mapping[str, nn.Module], wanted: Mapping[str, Wanted]) -> list[Target]:
    """List the weight matrices of the wanted layers, each once. Raises StepFailed where there is none."""
    found: dict[int, Target] = {}
    for name, wish in wanted.items():
        for own, weight in layers[name].named_parameters(recurse=False):
            if "weight" in own and weight.ndim > 1:
                inputs = 0 if getattr(layers[name], "transposed", False) else 1
                target = Target(f"{name}.{own}", weight, inputs, wish.ratio, wish.threshold, wish.own)
                found.setdefault(id(weight), target)
    if not found:
        raise StepFailed("no layer with weights to prune is left; see layers, types and skip")
    return list(found.values())


def masks(
    chosen: Sequence[Target], weights: Sequence[Tensor], rule: Rule, now: Callable[[float], float]
) -> list[Tensor]:
    """Return what stays, as bools in the shapes of `weights`, which stand for those of the targets.

    `now` turns a target's ratio into the one to reach at this moment.
    """
    if rule.pattern is not None:
        pairs = zip(chosen, weights, strict=True)
        return [_of_every(weight, target.inputs, *rule.pattern) for target, weight in pairs]
    kept = [
        weight.abs() > (_limit(weight.abs().flatten(), now(target.ratio)) if threshold is None else threshold)
        for target, weight in zip(chosen, weights, strict=True)
        for threshold in [target.threshold]
    ]
    together = [index for index, target in enumerate(chosen) if rule.over_model and not target.alone]
    if together:
        scores = [_lamp(weights[index]) if rule.lamp else weights[index].abs() for index in together]
        limit = _limit(torch.cat([score.flatten() for score in scores]), now(chosen[together[0]].ratio))
        for index, score in zip(together, scores, strict=True):
            kept[index] = score > limit
    return kept


def _limit(magnitudes: Tensor, ratio: float) -> Tensor:
    """Return the magnitude below or at which `ratio` of the weights lie; below zero where none is to go."""
    count = int(ratio * magnitudes.numel() + 1e-6)
    return torch.tensor(-1.0) if count == 0 else magnitudes.kthvalue(count).values


def _lamp(weight: Tensor) -> Tensor:
    """Score w² over the sum of the squares that are not smaller (Lee et al., LAMP, ICLR 2021, equation 4)."""
    squares, order = weight.square().flatten().sort()
    left = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares / left.clamp_min(torch.finfo(squares.dtype).tiny)
    return scores.view_as(weight)


def _of_every(weight: Tensor, axis: int, kept: int, group: int) -> Tensor:
    """Keep the largest `kept` of every `group` neighbours along the inputs (Mishra et al. 2021, section 3)."""
    flat = weight.abs().movedim(axis, -1)
    groups = flat.reshape(*flat.shape[:-1], -1, group)
    best = groups.topk(kept, dim=-1).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, value=True)
    return mask.reshape(flat.shape).movedim(-1, axis)
