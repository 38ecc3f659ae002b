"""Bias correction: what rounding the weights adds to a layer's mean output is taken off its bias.

Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-free quantization through weight equalization and
bias correction", ICCV 2019, section 4.2 and its empirical form in appendix D, on calibration samples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgepress_host.techniques.quantize.plan import listed
from edgepress_host.techniques.quantize.simulation import Simulation


def correct(model: nn.Module, exact: nn.Module, simulation: Simulation, x: Tensor, note: Callable[[str], None]) -> None:
    """Correct the biases of `model` in place; `exact` has the weights before any rounding."""
    rounded = copy.deepcopy(model)
    simulation.put_on_grid(rounded)
    means: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, output: Tensor) -> None:
        means.setdefault(name, _mean(layer, output))

    _watched(exact, simulation, x, keep)
    corrected: set[str] = set()

    def shifted(name: str, layer: nn.Module, output: Tensor) -> Tensor:
        if name in corrected or name not in means:
            return output
        corrected.add(name)
        shift = means[name] - _mean(layer, output)
        for owner in (layer, model.get_submodule(name)):
            bias = getattr(owner, "bias", None)
            owner.bias = nn.Parameter(shift if bias is None else bias.detach() + shift)
        # Layers behind this one see the corrected outputs already.
        return output + shift.reshape(_broadcast(layer, output))

    _watched(rounded, simulation, x, shifted)
    left = [name for name in simulation.bits if name not in corrected]
    note(
        f"corrected the biases of {len(corrected)} layers" + (f"; not called as layers: {listed(left)}" if left else "")
    )


def _watched(
    model: nn.Module, simulation: Simulation, x: Tensor, seen: Callable[[str, nn.Module, Tensor], Any]
) -> None:
    """Run all samples at once and show each quantized layer's output; what is returned takes its place."""

    def hook_of(name: str) -> Callable[[nn.Module, Any, Tensor], Any]:
        return lambda layer, _inputs, output: seen(name, layer, output)

    hooks = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in simulation.bits]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()


def _mean(layer: nn.Module, output: Tensor) -> Tensor:
    """Mean of each output channel."""
    channel = _channel(layer, output)
    return output.mean(dim=[axis for axis in range(output.ndim) if axis != channel])


def _broadcast(layer: nn.Module, output: Tensor) -> tuple[int, ...]:
    channel = _channel(layer, output)
    return tuple(-1 if axis == channel else 1 for axis in range(output.ndim))


def _channel(layer: nn.Module, output: Tensor) -> int:
    return output.ndim - 1 if isinstance(layer, nn.Linear) else 1
