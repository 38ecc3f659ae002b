"""Chance where learning begins: a network anew, of the same structure, with other random weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from edgepress_host.technique import StepFailed


def started_anew(model: nn.Module, seed: int, note: Callable[[str], None]) -> nn.Module:
    """Return a copy whose layers have the random weights that they begin with; what has no such start is noted.

    Raises StepFailed where no layer has one.
    """
    fresh = copy.deepcopy(model)
    begun: set[int] = set()
    with seeded(seed):
        for layer in fresh.modules():
            begin = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(begin):
                begin()
                begun |= {id(weight) for weight in layer.parameters()}
    left = [name for name, weight in fresh.named_parameters() if id(weight) not in begun]
    if not begun:
        raise StepFailed("no layer of this model can start anew; give its layers a reset_parameters()")
    if left:
        note(f"kept, since their layers have no reset_parameters(): {', '.join(left)}")
    return fresh


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random weights from a seed, and leave torch's own chance as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
