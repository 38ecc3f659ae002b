"""Helpers of the tests of quantization-aware training; the same options are trained once."""

from __future__ import annotations

import functools

import compress_zoo
import msgspec
import numpy as np
import torch
from edgepress_host import evaluate
from edgepress_host.press.data import Data
from edgepress_host.press.strict import convert
from edgepress_host.technique import Workbench, found
from edgepress_host.techniques.qat.grids import GridWeight

FULL = {"observe": 32}
"""8 bits everywhere."""

MIXED = {"observe": 32, "bits": 4, "layers": {"block.mix": {"bits": 2}, "hidden": {"bits": 1}}}
"""Stem and head of 8 bits, one layer each of 4, 2 and 1."""

ALONE = {"samples": 64, "bits": 4, "activations": "none"}
UNTRAINED = {"lr": 1e-9, "samples": 64}


def bench(note=lambda _: None):
    return Workbench(
        original=compress_zoo.build,
        split=Data(compress_zoo.load, key="compress_zoo:load").split,
        seed=0,
        say=lambda _: None,
        metric=evaluate.top1,
        augment=None,
        note=note,
    )


def qat(model=None, note=lambda _: None, **options):
    step = convert(options, found()["qat"])
    return step.apply_module(compress_zoo.build() if model is None else model, bench(note))


@functools.cache
def _made(options):
    return qat(**msgspec.json.decode(options))


def made(options):
    """Return what QAT makes of the zoo's model; the same options give the same module."""
    return _made(msgspec.json.encode(options))


def outputs(content, format_, x):
    return np.concatenate([batch[0] for batch in evaluate.predict(format_, content, x)])


def answers(model, x):
    with torch.no_grad():
        return model(torch.from_numpy(x.copy())).numpy()


def weights_of(model):
    """Quantized weights by the names of the user's layers."""
    return {name.removesuffix("__weight"): layer for name, layer in grids(model, GridWeight).items()}


def grids(model, kind):
    return {name: layer for name, layer in model.named_children() if isinstance(layer, kind)}
