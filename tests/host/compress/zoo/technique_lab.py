"""What the tests of techniques have in common: a step from its options, notes that are kept, and what a model does."""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from edgepress_host import evaluate, exporters
from edgepress_host.press.data import Samples
from edgepress_host.press.strict import convert


def step_of(kind, /, **options):
    """A step as a recipe makes one, checked."""
    made = convert(options, kind)
    made.check()
    return made


def noting(bench, x=None, **changes):
    """The bench with changes, and the list of what it will be told; `x` stands in for the samples of all splits."""
    notes = []
    if x is not None:
        samples = Samples(np.asarray(x, np.float32), np.zeros(len(x), np.int64))
        changes["split"] = lambda _: samples
    return msgspec.structs.replace(bench, note=notes.append, **changes), notes


def pressed(step, model, bench, x=None):
    """The model after a step, and what was noted."""
    around, notes = noting(bench, x)
    return step.apply_module(model, around), notes


def noise(*shape, seed=0):
    """Numbers of a normal distribution, the same ones in every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def held_out(bench):
    """Inputs that nobody trained on."""
    return torch.from_numpy(bench.split("validate").x.copy())


def answers(model, x):
    """What a model answers in evaluation mode."""
    with torch.no_grad():
        return model.eval()(x)


def top1(model, bench):
    """Accuracy on validate."""
    return evaluate.top1(answers(model, held_out(bench)).numpy(), bench.split("validate").y)


def in_runtime(format_, content, x):
    """The first output of a file in the runtime of its format."""
    return np.concatenate([outputs[0] for outputs in evaluate.predict(format_, content, x)])


def assert_file_answers_as(model, format_, x, atol=1e-4):
    """Export a model, run the file, and compare; returns the file's content."""
    content = exporters.get(format_).export(model, x[:2])
    np.testing.assert_allclose(in_runtime(format_, content, x), answers(model, torch.from_numpy(x.copy())), atol=atol)
    return content
