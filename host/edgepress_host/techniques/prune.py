"""Pruning: whole channels along the dependency graph, or single weights by magnitude; then fine-tuning."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import msgspec
import torch
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.trained import Trained
from edgepress_host.press.training import supervised
from edgepress_host.technique import Stage, StepFailed, Workbench, check_patterns, for_layer

Importance = Literal["l1", "l2", "bn_scale", "lamp", "fpgm"]
PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


class PruneLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a layer may have of its own."""

    ratio: float | None = None
    skip: bool | None = None


class Prune(Trained, frozen=True):
    """Remove `ratio` of the channels (kind channel) or set `ratio` of the weights to zero (kind magnitude).

    Channel pruning follows the dependency graph (Fang et al., DepGraph, CVPR 2023) and keeps widths at multiples
    of `round_to`; the layers that make the model's output keep theirs. Zeros of magnitude pruning (Han et al.,
    NeurIPS 2015) stay zero while fine-tuning. `scope` ranks within each layer, or over the whole model.
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train",)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"ratio": 0.5},
        {"ratio": 0.5, "importance": "bn_scale", "scope": "global"},
        {"ratio": 0.5, "epochs": 1, "samples": 64},
        {"kind": "magnitude", "ratio": 0.8, "epochs": 1, "samples": 64},
        {"kind": "magnitude", "ratio": 0.8, "scope": "global"},
    )

    kind: Literal["channel", "magnitude"] = "channel"
    ratio: float = 0.5
    importance: Importance = "l2"
    scope: Literal["layer", "global"] = "layer"
    round_to: int = 4
    skip: bool = False
    layers: dict[str, PruneLayer] = msgspec.field(default_factory=dict)
    types: dict[str, PruneLayer] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""
        overrides = [override.ratio for override in (*self.layers.values(), *self.types.values())]
        for ratio in (self.ratio, *overrides):
            if ratio is not None and not 0 <= ratio < 1:
                raise UsageError(f"ratio: expected at least 0 and less than 1, got {ratio}")
        if self.round_to < 1:
            raise UsageError(f"round_to: expected at least 1, got {self.round_to}")
        if self.kind == "magnitude" and self.importance != "l2":
            raise UsageError("importance: magnitude pruning ranks by absolute value and takes no importance")

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a pruned and fine-tuned copy."""
        pruned = copy.deepcopy(model).requires_grad_(True)
        plan = self._plan(pruned)
        if self.kind == "channel":
            bench.say("pruning channels")
            self._remove_channels(pruned, plan, bench)
        else:
            bench.say("pruning weights")
            self._zero_weights(plan)
        if self.epochs:
            self.train(pruned, bench, supervised)
        return pruned.eval()

    def _plan(self, model: nn.Module) -> dict[nn.Module, float]:
        """Ratio of each prunable layer; 0 where it is to be skipped."""
        held = {name: layer for name, layer in model.named_modules() if isinstance(layer, PRUNABLE)}
        check_patterns(self.layers, self.types, {name: type(layer).__name__ for name, layer in held.items()})
        plan: dict[nn.Module, float] = {}
        for name, layer in held.items():
            own = for_layer(self, self.layers, self.types, name, type(layer).__name__)
            plan[layer] = 0.0 if own.skip else own.ratio
        return plan

    def _remove_channels(self, model: nn.Module, plan: dict[nn.Module, float], bench: Workbench) -> None:
        import torch_pruning as tp

        example = torch.from_numpy(bench.calibration(2).copy())
        before = model.eval()(example).shape
        ignored = [layer for layer, ratio in plan.items() if ratio == 0] + output_layers(model, example)
        own = {layer: ratio for layer, ratio in plan.items() if ratio != self.ratio and layer not in ignored}
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=_importance(self.importance),
            global_pruning=self.scope == "global",
            pruning_ratio=self.ratio,
            pruning_ratio_dict=own,
            max_pruning_ratio=0.9,
            ignored_layers=ignored,
            round_to=self.round_to,
            # The library's own defaults are shared between instances.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        pruner.step()
        after = model(example).shape
        if after != before:
            raise StepFailed(f"the output's shape changed from {tuple(before)} to {tuple(after)}")

    def _zero_weights(self, plan: dict[nn.Module, float]) -> None:
        weights = [(layer.weight, ratio) for layer, ratio in plan.items() if isinstance(layer.weight, nn.Parameter)]
        with torch.no_grad():
            if self.scope == "global":
                chosen = [weight for weight, ratio in weights if ratio]
                flat = torch.cat([weight.abs().flatten() for weight in chosen])
                limit = _limit(flat, self.ratio)
                for weight in chosen:
                    weight.mul_(weight.abs() > limit)
                return
            for weight, ratio in weights:
                weight.mul_(weight.abs() > _limit(weight.abs().flatten(), ratio))


def output_layers(model: nn.Module, example: torch.Tensor) -> list[nn.Module]:
    """Layers with weights whose channels are the model's output, found by walking back along the gradient."""
    owners = {id(weight): layer for layer in model.modules() for weight in layer.parameters(recurse=False)}
    with torch.enable_grad():
        outputs = model(example)
    first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    found: list[nn.Module] = []
    seen: set[Any] = set()
    waiting = [first.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        weights = [owner for step, _ in node.next_functions if (owner := _weight_owner(step, owners)) is not None]
        found += weights
        if not weights:
            waiting += [step for step, _ in node.next_functions]
    return found


def _weight_owner(node: Any, owners: dict[int, nn.Module]) -> nn.Module | None:
    """Return the layer whose weight matrix a gradient node is; a dense layer's comes through a transposition."""
    if node is not None and type(node).__name__ == "TBackward0":
        node = node.next_functions[0][0]
    weight = getattr(node, "variable", None)
    return owners.get(id(weight)) if weight is not None and weight.ndim > 1 else None


def _limit(magnitudes: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return the magnitude below or at which `ratio` of the weights lie; below zero where none is to go."""
    count = int(ratio * magnitudes.numel())
    return torch.tensor(-1.0) if count == 0 else magnitudes.kthvalue(count).values


def _importance(name: Importance) -> Any:
    from torch_pruning.pruner import importance

    return {
        "l1": lambda: importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: importance.GroupMagnitudeImportance(p=2),
        "bn_scale": importance.BNScaleImportance,
        "lamp": importance.LAMPImportance,
        "fpgm": importance.FPGMImportance,
    }[name]()
