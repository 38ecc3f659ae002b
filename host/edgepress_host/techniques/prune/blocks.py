"""Whole blocks go, whose output has the shape of their input: the ones that the model misses least."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgepress_host.press.folding import fold_batch_norms
from edgepress_host.press.sensitivity import scorer, sweep
from edgepress_host.press.structure import replace_layer
from edgepress_host.technique import StepFailed, Workbench

_STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)


def blocks(model: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """Modules with weight matrices that are called once and give back the shape of their only input, by name.

    Layers of a torch.nn.TransformerEncoder or Decoder may get masks beside it.
    """
    calls: dict[nn.Module, list[bool]] = {}
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any], output: Any) -> None:
        alone = len(inputs) == 1 and not named_inputs
        first = inputs[0] if inputs else None
        fits = isinstance(first, Tensor) and isinstance(output, Tensor) and first.shape == output.shape
        calls.setdefault(module, []).append(fits and (alone or _in_stack(model, names[module])))

    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in names if module is not model]
    try:
        # With gradients, torch's own Transformer layers run their parts one by one.
        with torch.enable_grad():
            model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    fit = {module for module in names if calls.get(module) == [True] and _has_matrices(module)}
    return {name: module for module, name in names.items() if module in fit and not _is_sum(module, fit)}


class BlockCut:
    """Takes blocks away from a model, in place: the one without which it scores best, and so on.

    It ends at `count` blocks, or before the score has dropped by more than `max_drop` against the model as it came.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Callable[[Mapping[str, nn.Module]], Mapping[str, object]],
        bench: Workbench,
        *,
        count: int | None,
        max_drop: float | None,
    ) -> None:
        self._model = model
        self._wanted = wanted
        self._bench = bench
        self._count = count
        self._max_drop = max_drop
        self._example = torch.from_numpy(bench.calibration(2).copy())
        self._score = scorer(bench.split("validate"), bench.metric, bench.memo)
        self._started = self._score(model)
        found = blocks(model, self._example)
        if not found:
            raise StepFailed("no layer or block gives back the shape of its input, so that none can be taken out")
        self._left = {id(found[name]) for name in wanted(found)}
        self._gone: list[str] = []
        self._names = {id(module): name for name, module in found.items()}

    def __call__(self, share: float) -> None:
        """Take out a share of the count, as far as the drop allows. Raises StepFailed if none can go in the end."""
        upto = len(self._left) if self._count is None else round(self._count * share)
        while len(self._gone) < upto and self._take_one():
            pass
        if share < 1:
            return
        if not self._gone:
            raise StepFailed(f"no block can go within max_drop = {self._max_drop}; allow more, or leave this step out")
        if self._count is not None and len(self._gone) < self._count:
            self._bench.note(f"only {len(self._gone)} of {self._count} blocks could go")
        self._bench.note(f"taken out: {', '.join(self._gone)}")

    def _take_one(self) -> bool:
        """Take out the block that is missed least, of equals the one with the most weights."""
        found = blocks(self._model, self._example)
        here = {name: module for name, module in found.items() if id(module) in self._left}
        here = {name: module for name, module in here.items() if not _is_last_of_stack(self._model, name)}
        if not here:
            return False
        points = sweep(self._model, dict.fromkeys(here, (1.0,)), self._without, self._score, say=self._bench.say)
        best = max(points, key=lambda point: (point.accuracy, _weights(here[point.layer])))
        if self._max_drop is not None and self._started - best.accuracy > self._max_drop:
            return False
        self._gone.append(self._names[id(here[best.layer])])
        take_out(self._model, best.layer, self._example)
        return True

    def _without(self, model: nn.Module, name: str, _level: float) -> nn.Module:
        changed = copy.deepcopy(model)
        take_out(changed, name, self._example)
        return changed


def take_out(model: nn.Module, name: str, example: Tensor) -> None:
    """Let a block's input be its output, in place. A layer of torch's own stacks leaves the list.

    Where the block is a single layer, the batch normalisation that alone takes its output goes with it: its statistics
    are of what is gone.
    """
    parent, _, leaf = name.rpartition(".")
    if not _in_stack(model, name):
        if not list(model.get_submodule(name).children()):
            fold_batch_norms(model, example, {name})
        replace_layer(model, name, nn.Identity())
        return
    del model.get_submodule(parent)[int(leaf)]  # type: ignore[operator]
    stack = model.get_submodule(parent.rpartition(".")[0])
    stack.num_layers = len(stack.layers)  # type: ignore[arg-type, assignment]


def _is_sum(module: nn.Module, fit: set[nn.Module]) -> bool:
    """Tell whether a module is a mere row of blocks, each of which can go by itself."""
    row = module.layers if isinstance(module, _STACKS) else module
    parts = [part for part in row.children() if _has_matrices(part)]
    return isinstance(module, (nn.Sequential, *_STACKS)) and len(parts) > 1 and all(part in fit for part in parts)


def _has_matrices(module: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in module.parameters())


def _in_stack(model: nn.Module, name: str) -> bool:
    parent, _, _ = name.rpartition(".")
    grandparent, _, leaf = parent.rpartition(".")
    return leaf == "layers" and isinstance(model.get_submodule(grandparent), _STACKS)


def _is_last_of_stack(model: nn.Module, name: str) -> bool:
    return _in_stack(model, name) and len(model.get_submodule(name.rpartition(".")[0])) == 1  # type: ignore[arg-type]


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
