"""What the tests of cluster have in common."""

from __future__ import annotations

import torch

LAYERS = ("stem", "block.conv", "block.mix", "hidden", "head")


def weight_of(model, name):
    return model.get_submodule(name).weight.detach()


def distinct(weight):
    return len(weight.unique())


def sparse(model, share=0.8):
    for name in LAYERS:
        weight = model.get_submodule(name).weight
        with torch.no_grad():
            weight.mul_(weight.abs() > weight.abs().flatten().quantile(share))
    return model
