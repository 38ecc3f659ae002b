"""Which layers there are to factorize, what reaches them, and why some must stay."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgepress_host.press.structure import sharers
from edgepress_host.press.training import one_thread
from edgepress_host.techniques.low_rank.pieces import KINDS, Layer


class Site(NamedTuple):
    """A dense or convolutional layer, and the shapes of its inputs when one sample passes the model."""

    name: str
    layer: Layer
    shapes: tuple[tuple[int, ...], ...]
    obstacle: str
    """Why it cannot be factorized; empty where it can."""


def survey(model: nn.Module, sample: Tensor) -> dict[str, Site]:
    """Find the layers by their names; `sample` has shape (1, …)."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, KINDS)}
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, named, name=name: shapes[name].append(
                tuple((given[0] if given else named["input"]).shape)
            ),
            with_kwargs=True,
        )
        for name, layer in layers.items()
    ]
    training = model.training
    try:
        # With gradients: nn.TransformerEncoderLayer's inference path reads weights without calling its layers.
        with one_thread(), torch.enable_grad():
            model.eval()(sample)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    shared = sharers(model)
    return {
        name: Site(name, layer, tuple(shapes[name]), _obstacle(layer, shared.get(name, []), called=bool(shapes[name])))
        for name, layer in layers.items()
    }


def _obstacle(layer: Layer, others: list[str], *, called: bool) -> str:
    if type(layer) not in KINDS:
        return f"its class {type(layer).__name__} is more than a plain layer, and its owner may read the weight itself"
    if others:
        return f"it shares its weight with {', '.join(others)}"
    if not called:
        return "the model reads its weight without calling it, or does not use it"
    if not isinstance(layer, nn.Linear) and layer.groups > 1:
        return f"a convolution of {layer.groups} groups has few channels in each"
    return ""


def leave_inference_path(model: nn.Module) -> None:
    """Let Transformer layers call what they hold: torch's inference path reads `linear1.weight`, which is gone.

    Changes `model`. The flags are plain attributes, which the cache keeps.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            parts: list[nn.Module] = [module.linear1, module.linear2]
            if not all(isinstance(part, nn.Linear) for part in parts):
                module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
