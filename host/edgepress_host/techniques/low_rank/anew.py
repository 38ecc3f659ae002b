"""Factors from the start: initialise a model as if it had never been trained, and take its layers apart then.

Factors of a usual initialisation, scaled to its norm, start better than factors that are random by themselves
(spectral initialisation: Khodak, Tenenholtz, Mackey, Fusi, "Initialization and Regularization of Factorized Neural
Layers", ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgepress_host.techniques.low_rank.ranks import Choice


def initialise(model: nn.Module, seed: int) -> list[str]:
    """Initialise every layer that knows how to; changes `model`, and returns the names of what kept its weights."""
    fresh: set[int] = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            again = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(again):
                again()
                fresh |= {id(weight) for weight in module.parameters(recurse=False)}
    return [name for name, weight in model.named_parameters() if id(weight) not in fresh]


def rescale(model: nn.Module, chosen: Mapping[str, Choice]) -> None:
    """Give factors the norm of the layer that they stand for: truncation has made them smaller. Changes `model`."""
    with torch.no_grad():
        for name, choice in chosen.items():
            last = model.get_submodule(name)[-1]  # type: ignore[index]
            last.weight /= max(choice.kept, 1e-6) ** 0.5
