"""Whole channels, filters and neurons go, along the dependency graph that torch-pruning traces."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgepress_host.press.sensitivity import named
from edgepress_host.press.structure import sharers
from edgepress_host.press.training import every_output
from edgepress_host.technique import StepFailed, Workbench
from edgepress_host.techniques.prune.attention import attentions
from edgepress_host.techniques.prune.gradients import SAMPLES, backward
from edgepress_host.techniques.prune.plan import PRUNABLE, RECURRENT, Wanted, share_of
from edgepress_host.techniques.prune.weights import SPARSE, unknown
from edgepress_host.text import one_line

Owners = Mapping[int, nn.Module]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class ChannelCut:
    """Takes channels away from a model, in place, by a share of the way to the wanted ratios at each call."""

    def __init__(
        self,
        model: nn.Module,
        wanted: Mapping[str, Wanted],
        bench: Workbench,
        *,
        importance: str,
        ratio: float,
        over_model: bool,
        round_to: int,
        rounds: int,
    ) -> None:
        """Trace the model. Raises StepFailed for one that has layers which cannot lose channels, by name."""
        import torch_pruning as tp

        self._model = model.eval()
        self._importance = importance
        self._bench = bench
        self._wanted = wanted
        refuse_recurrent(named(model, RECURRENT), wanted)
        self._example = torch.from_numpy(bench.calibration(2).copy())
        self._shapes = _shapes(model(self._example))
        self._prunable = named(model, PRUNABLE)
        kept, self._untouched = self._kept()
        own = {
            self._prunable[name]: w.ratio for name, w in wanted.items() if w.own and self._prunable[name] not in kept
        }
        try:
            with warnings.catch_warnings():
                # It warns of weights that belong to no layer of torch's; their layers keep their widths.
                warnings.simplefilter("ignore")
                self._pruner = tp.pruner.BasePruner(
                    model,
                    self._example,
                    importance=None,
                    global_pruning=over_model,
                    pruning_ratio=ratio,
                    pruning_ratio_dict=own,
                    max_pruning_ratio=max(0.9, ratio, *own.values()),
                    iterative_steps=rounds,
                    iterative_pruning_ratio_scheduler=lambda final, steps: [
                        share_of(final, number / steps) for number in range(steps + 1)
                    ],
                    ignored_layers=kept,
                    round_to=round_to,
                    root_module_types=list(PRUNABLE),
                    # The library's own defaults are shared between instances.
                    in_channel_groups={},
                    out_channel_groups={},
                    num_heads={},
                )
        except Exception as error:
            raise StepFailed(
                f"the graph of this model's layers cannot be traced ({one_line(error)}); kind = 'magnitude' needs none"
            ) from error

    def __call__(self, _share: float) -> None:
        """Take away what this round is to take; torch-pruning counts the rounds itself. Raises StepFailed."""
        from edgepress_host.techniques.prune.importance import importance_of

        if self._importance == "bn_scale" and not named(self._model, _NORMS):
            raise StepFailed("importance bn_scale: this model has no batch normalisation; take l2, fpgm or taylor")
        widths = self._widths()
        self._pruner.importance = importance_of(self._importance, self._model, self._backward)
        self._pruner.step()
        self._model.zero_grad(set_to_none=True)
        try:
            after = _shapes(self._model.eval()(self._example))
        except RuntimeError as error:
            raise StepFailed(
                f"the model does not run with fewer channels ({one_line(error)}): its code goes by the widths that it "
                "was made with; skip those layers under layers"
            ) from error
        if after != self._shapes:
            raise StepFailed(f"the outputs' shapes changed from {self._shapes} to {after}; skip the layers before them")
        self._name_untouched(widths)

    def _backward(self, model: nn.Module) -> Iterator[None]:
        return backward(model, self._bench.split("train").first(SAMPLES))

    def _kept(self) -> tuple[list[nn.Module], set[str]]:
        """Layers that keep their channels, and the names of those that nobody asked to leave."""
        others = unknown(self._model).values()
        # Layers that share a weight must keep one width, and so must what they read.
        tied = [self._model.get_submodule(name) for name in sharers(self._model, aliases=False)]
        special = [*attentions(self._model).values(), *named(self._model, RECURRENT).values(), *others, *tied]
        inside = [part for module in special for part in module.modules()]
        outputs = output_layers(self._model, self._example)
        feeding = feeding_layers(self._model, special, self._example)
        skipped = [layer for name, layer in self._prunable.items() if name not in self._wanted]
        kept = [*skipped, *inside, *outputs, *feeding]
        obvious = {id(layer) for layer in [*skipped, *outputs]}
        return kept, {name for name, layer in self._prunable.items() if id(layer) not in obvious}

    def _widths(self) -> dict[str, int]:
        return {name: _width(layer) for name, layer in self._prunable.items()}

    def _name_untouched(self, before: Mapping[str, int]) -> None:
        self._untouched -= {name for name, width in self._widths().items() if width != before[name]}
        if self._pruner.current_step == self._pruner.iterative_steps and self._untouched:
            self._bench.note(
                f"kept all channels: {', '.join(name for name in self._prunable if name in self._untouched)}"
            )


def refuse_recurrent(layers: Mapping[str, nn.Module], wanted: Iterable[str]) -> None:
    """Raise StepFailed for a recurrent layer that is not skipped."""
    for name in wanted:
        if name in layers:
            kind = type(layers[name]).__name__
            raise StepFailed(
                f"{name}: a layer of type {kind} cannot lose channels; skip it (layers.{name} = {{ skip = true }}) or "
                "prune single weights with kind = 'magnitude'"
            )


def output_layers(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """Layers with weights whose channels are the model's output, found by walking back along the gradient."""
    with torch.enable_grad():
        outputs = every_output(model(example))
        return list(_makers([output.grad_fn for output in outputs], _owners(model)))


def feeding_layers(model: nn.Module, readers: Iterable[nn.Module], example: Tensor) -> list[nn.Module]:
    """Layers with weights whose channels some modules read."""
    seen: list[Any] = []

    def remember(_module: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> None:
        given = [*inputs, *named_inputs.values()]
        seen.extend(part.grad_fn for part in given if isinstance(part, Tensor))

    hooks = [reader.register_forward_pre_hook(remember, with_kwargs=True) for reader in readers]
    try:
        with torch.enable_grad():
            # The graph must live while its nodes are looked at.
            outputs = model(example)
            found = list(_makers(seen, _owners(model)))
            del outputs
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _owners(model: nn.Module) -> dict[int, nn.Module]:
    """Map weights to the layers that hold them; what a module adds of its own, such as positions, is none."""
    return {id(weight): layer for layer in named(model, SPARSE).values() for weight in layer.parameters(recurse=False)}


def _makers(waiting: list[Any], owners: Owners) -> Iterator[nn.Module]:
    """Walk back from gradient nodes to the nearest layers with weight matrices."""
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        weights = [owner for step, _ in node.next_functions if (owner := _weight_owner(step, owners)) is not None]
        yield from weights
        if not weights:
            waiting += [step for step, _ in node.next_functions]


def _weight_owner(node: Any, owners: Owners) -> nn.Module | None:
    """Return the layer whose weight matrix a gradient node is; a dense layer's comes through a transposition."""
    if node is not None and type(node).__name__ in {"TBackward0", "TransposeBackward0"}:
        node = node.next_functions[0][0]
    weight = getattr(node, "variable", None)
    return owners.get(id(weight)) if weight is not None and weight.ndim > 1 else None


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    return [tuple(output.shape) for output in every_output(outputs)]


def _width(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]
