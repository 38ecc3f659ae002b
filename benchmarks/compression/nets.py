"""Networks by name and seed for recipes, as `nets:lenet300_2`: trained on first use, kept under $EDGEPRESS_BENCH."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import nn


def folder() -> Path:
    """Where weights and runs are kept."""
    return Path(os.environ.get("EDGEPRESS_BENCH", "runs/bench")).absolute()


CONVOLUTIONAL = ("lenet5_caffe", "vgg16")
"""Nets that train faster in bfloat16, where the processor has it."""


def trained(name: str, seed: int) -> nn.Module:
    """Return a net of the zoo with the weights of its own training from `seed`, which is run where it was not yet."""
    from edgepress_models.zoo import ZOO

    where = folder() / "zoo" / f"{name}-{seed}"
    weights = where / f"{name}.safetensors"
    if not weights.exists():
        command = [sys.executable, "-m", "edgepress_models.train", name, "--seed", str(seed), "--out", str(where)]
        subprocess.run([*command, *(["--bfloat16"] if name in CONVOLUTIONAL else [])], check=True)
    model = ZOO[name].build()
    model.load_state_dict(safetensors.torch.load(weights.read_bytes()))
    return model.eval()


def __getattr__(attribute: str) -> Callable[[], nn.Module]:
    """Resolve `NAME_SEED`."""
    name, _, seed = attribute.rpartition("_")
    if not name or not seed.isdigit():
        raise AttributeError(attribute)
    return lambda: trained(name, int(seed))
