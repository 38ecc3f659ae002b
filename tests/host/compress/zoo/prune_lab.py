"""What the tests of prune have in common."""

from __future__ import annotations

import functools

import prune_zoo as zoo
import torch
from edgepress_host import evaluate, technique
from edgepress_host.press import structure
from edgepress_host.press.data import Data
from edgepress_host.technique import Workbench
from technique_lab import step_of
from torch import nn

PRUNE = technique.found()["prune"]


MATRICES = (nn.Linear, nn.Conv1d)


step = functools.partial(step_of, PRUNE)


def bench_of(original, note):
    data = Data(zoo.load, key="prune_zoo:load")
    return Workbench(
        original=lambda: original,
        split=data.split,
        seed=0,
        say=lambda _: None,
        metric=evaluate.top1,
        augment=None,
        note=note,
    )


def zeros(layer):
    return float((layer.weight == 0).float().mean())


def sparsity(model):
    weights = [layer.weight for layer in model.modules() if isinstance(layer, MATRICES)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def inputs(count=16):
    return torch.from_numpy(zoo.load("validate")[0][:count])


def can_be_kept(original, pruned):
    again = structure.rebuild(original, structure.describe(pruned), structure.tensors(pruned))
    return structure.digest(again) == structure.digest(pruned)
