"""What the tests of distill have in common."""

from __future__ import annotations

import functools

import compress_zoo
import technique_lab
from edgepress_host.techniques.distill import Distill
from technique_lab import answers

SHORT = {"student": "compress_zoo:student", "samples": 256, "epochs": 3, "lr": 3e-3, "batch": 16}


step_of = functools.partial(technique_lab.step_of, Distill)


def distilled(bench, model=None, **options):
    return step_of(**options).apply_module(compress_zoo.build() if model is None else model, bench)


def features(model, layer, x):
    found = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _layer, _inputs, output: found.append(output))
    answers(model, x)
    handle.remove()
    return found[0].double()
