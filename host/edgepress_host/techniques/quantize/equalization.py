"""Make ranges alike before they are quantized: of the weights of two layers, or of activations and weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from edgepress_host.press.tracing import CONVOLUTIONS, WEIGHTED, Traced, operator, shape_of
from edgepress_host.press.training import first_output
from edgepress_host.techniques.quantize.plan import listed

SWEEPS = 20
"""Times that all pairs are equalized; chains of them settle in a few."""

_KEEP_SCALE = frozenset(
    {
        *("relu", "relu_", "leaky_relu", "leaky_relu_", "dropout", "dropout_", "alias", "clone"),
        *("contiguous", "detach", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d"),
        *("adaptive_avg_pool2d", "mean", "flatten", "view", "reshape", "squeeze"),
    }
)
"""f(s·x) = s·f(x) for s > 0, a channel at a time; those that change the shape are checked by their shapes."""

_KEEP_LAST = frozenset({"dropout", "dropout_", "alias", "clone", "contiguous", "detach", "view", "reshape"})


class Pair(NamedTuple):
    """Names of two weights, the second of which takes the first one's channels, each `repeat` times over."""

    first: str
    second: str
    repeat: int
    depthwise: bool


def cross_layer(model: nn.Module, traced: Traced, note: Callable[[str], None]) -> None:
    """Scale channels so that the ranges of consecutive weights are equal; what the model computes stays, in place.

    Batch normalization is folded already. Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-free
    quantization through weight equalization and bias correction", ICCV 2019, equation 11.
    """
    pairs = [pair for node in traced.nodes(WEIGHTED) if (pair := _pair(model, traced, node)) is not None]
    if not pairs:
        note("equalize: no two layers follow each other with ReLU alone between them; all are left as they are")
        return
    with torch.no_grad():
        for _ in range(SWEEPS):
            for pair in pairs:
                _equalize(model, pair)
    paired = {name for pair in pairs for name in (pair.first, pair.second)}
    weights = [name for node in traced.nodes(WEIGHTED) if (name := traced.parameter(node, 1)) is not None]
    left = [name.removesuffix(".weight") for name in weights if name not in paired]
    note(f"equalized {len(pairs)} pairs of layers" + (f"; in none: {listed(left)}" if left else ""))


def smooth(model: nn.Module, traced: Traced, x: Tensor, alpha: float, note: Callable[[str], None]) -> None:
    """Move range from what a LayerNorm returns into the weights of the dense layers behind it, in place.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha). Source: G. Xiao et al., "SmoothQuant", ICML 2023, equation 4.
    """
    smoothed, left = [], []
    for node in traced.nodes(frozenset({"layer_norm"})):
        scale, shift = traced.parameter(node, 2), traced.parameter(node, 3)
        dense = _dense_behind(traced, node)
        if scale is None or not dense or shape_of(node)[-1:] != tuple(model.get_parameter(scale).shape):
            left.append(scale.removesuffix(".weight") if scale else node.name)
            continue
        name = scale.removesuffix(".weight")
        weights = [model.get_parameter(one) for one in dense]
        with torch.no_grad():
            seen = _largest(model, name, x)
            held = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
            factors = seen.clamp(min=1e-5) ** alpha / held.clamp(min=1e-5) ** (1 - alpha)
            factors = torch.where((seen > 0) & (held > 0), factors, torch.ones_like(factors))
            for parameter in (scale, shift):
                if parameter is not None:
                    model.get_parameter(parameter).div_(factors)
            for weight in weights:
                weight.mul_(factors)
        smoothed.append(name)
    if not smoothed:
        note("equalize: no LayerNorm has dense layers alone behind it; all are left as they are")
        return
    note(f"smoothed {listed(smoothed)}" + (f"; left as they are: {listed(left)}" if left else ""))


def distance(before: nn.Module, after: nn.Module, x: Tensor) -> float:
    """Largest change of the first output, as a share of its largest value."""
    with torch.no_grad():
        outputs = [first_output(model(x)) for model in (before.eval(), after.eval())]
    largest = float(outputs[0].abs().max())
    return float((outputs[0] - outputs[1]).abs().max()) / max(largest, 1e-12)


def _pair(model: nn.Module, traced: Traced, node: fx.Node) -> Pair | None:
    first = traced.parameter(node, 1)
    behind = _behind(node)
    second = None if behind is None else traced.parameter(behind, 1)
    if first is None or behind is None or second is None:
        return None
    outputs = model.get_parameter(first).shape[0]
    weight = model.get_parameter(second)
    groups = int(behind.args[6]) if operator(behind) in CONVOLUTIONS and len(behind.args) > 6 else 1  # type: ignore[arg-type]
    depthwise = groups > 1 and groups == outputs == weight.shape[0]
    inputs = outputs if depthwise else weight.shape[1]
    if (groups > 1 and not depthwise) or inputs % outputs:
        return None
    return Pair(first, second, inputs // outputs, depthwise)


def _behind(node: fx.Node) -> fx.Node | None:
    """Return the one weighted operator that another one's channels reach unmixed and unbent, if there is one."""
    channels = 1 if operator(node) in CONVOLUTIONS else len(shape_of(node)) - 1
    width, current = shape_of(node)[channels], node
    while len(current.users) == 1:
        (following,) = current.users
        if following.args[0] is not current:
            return None
        if operator(following) in WEIGHTED:
            flat = len(shape_of(current)) == 2
            same = (operator(following) == "linear") == (operator(node) == "linear")
            return following if same or (flat and operator(following) == "linear") else None
        shape = shape_of(following)
        if operator(following) not in _KEEP_SCALE or len(shape) <= min(channels, 1):
            return None
        if operator(node) == "linear" and shape != shape_of(current):
            return None
        if operator(node) != "linear":
            flattened = len(shape) == 2 and shape[1] == math.prod(shape_of(current)[1:])
            if not flattened and shape[1] != width:
                return None
        current = following
    return None


def _equalize(model: nn.Module, pair: Pair) -> None:
    first, second = model.get_parameter(pair.first), model.get_parameter(pair.second)
    width = first.shape[0]
    columns = second if pair.depthwise else second.transpose(0, 1)
    ranges = first.reshape(width, -1).abs().amax(1), columns.reshape(width, -1).abs().amax(1)
    factors = (ranges[0] / ranges[1]).sqrt()
    factors = torch.where(torch.isfinite(factors) & (factors > 0), factors, torch.ones_like(factors))
    first.div_(factors.reshape(-1, *[1] * (first.ndim - 1)))
    bias = getattr(model.get_submodule(pair.first.rpartition(".")[0]), "bias", None)
    if isinstance(bias, Tensor):
        bias.div_(factors)
    repeated = factors.repeat_interleave(pair.repeat)
    shape = (-1, *[1] * (second.ndim - 1)) if pair.depthwise else (1, -1, *[1] * (second.ndim - 2))
    second.mul_(repeated.reshape(shape))


def _dense_behind(traced: Traced, node: fx.Node) -> list[str]:
    """Weights of the dense layers that alone take what a node returns, its last axis unmixed; empty if others do."""
    found: list[str] = []
    for user in node.users:
        if operator(user) == "linear" and user.args[0] is node:
            weight = traced.parameter(user, 1)
            if weight is None:
                return []
            found.append(weight)
        elif _keeps_last(user, node):
            behind = _dense_behind(traced, user)
            if not behind:
                return []
            found += behind
        else:
            return []
    return found


def _keeps_last(user: fx.Node, node: fx.Node) -> bool:
    last = len(shape_of(node)) - 1
    if operator(user) == "transpose":
        return all(int(axis) % (last + 1) != last for axis in user.args[1:])  # type: ignore[arg-type]
    if operator(user) == "permute":
        return int(user.args[1][-1]) % (last + 1) == last  # type: ignore[index,arg-type]
    return operator(user) in _KEEP_LAST and shape_of(user)[-1:] == shape_of(node)[-1:]


def _largest(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """Largest magnitude of each feature that a layer returns."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda _layer, _inputs, output: seen.append(output.detach().reshape(-1, output.shape[-1]).abs().amax(0))
    )
    try:
        model(x)
    finally:
        hook.remove()
    return torch.stack(seen).amax(0)
