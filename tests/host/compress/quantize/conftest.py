"""A net of every kind of layer, its files, and steps of quantization on either."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from edgepress_host import exporters, technique
from edgepress_host.press import structure
from edgepress_host.press.strict import convert
from quantize_lab import Net, Paired, made_from, outputs, seeded


@pytest.fixture(scope="session")
def net():
    """A net with every kind of layer that the quantizers treat apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="session")
def files(net, bench):
    """That net in both formats."""
    return {name: exporters.get(name).export(net, bench.calibration(2)) for name in exporters.names()}


@pytest.fixture
def quantized(bench, files):
    """Quantize with options; the file, and what was noted."""

    def call(format_, content=None, samples=None, **options):
        notes = []
        calibrated = {} if samples is None or options["mode"] != "static" else {"samples": samples}
        step = made_from(options | calibrated)
        content = files[format_] if content is None else content
        return step.apply_graph(format_, content, msgspec.structs.replace(bench, note=notes.append)), notes

    return call


@pytest.fixture
def away(bench, files):
    """Mean change of a file's outputs against fp32, as a share of their mean size."""

    def call(format_, content, plain_kernels=False, before=None):
        x = bench.calibration(16)
        exact = outputs(format_, files[format_] if before is None else before, x, plain_kernels=False)
        return np.abs(outputs(format_, content, x, plain_kernels=plain_kernels) - exact).mean() / np.abs(exact).mean()

    return call


@pytest.fixture(scope="session")
def paired():
    """Channels of very different sizes, which the layers behind make up for: what cross-layer equalization is for."""
    model = seeded(Paired)
    with torch.no_grad():
        model.norm.weight.copy_(torch.logspace(-2, 1, 8))
        model.norm.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        model.deep.weight.div_(torch.logspace(-2, 1, 8).reshape(-1, 1, 1, 1))
    return model


@pytest.fixture
def prepare(paired, bench):
    """Prepare a module by options of quantize; the new module, and what was noted."""

    def call(model=paired, **options):
        notes = []
        step = convert({"mode": "weight_only", **options}, technique.found()["quantize"])
        step.check()
        prepared = step.prepared()
        assert prepared.stage == "module"
        before = structure.digest(model)
        made = prepared.apply_module(model, msgspec.structs.replace(bench, note=notes.append))
        assert structure.digest(model) == before
        again = structure.rebuild(model, structure.describe(made), structure.tensors(made))
        assert structure.digest(again) == structure.digest(made)
        return made, notes

    return call
