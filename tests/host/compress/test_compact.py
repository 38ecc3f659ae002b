from __future__ import annotations

import compress_zoo
import msgspec
import numpy as np
import pytest
import torch
from edgepress_host import evaluate, exporters
from edgepress_host.press import structure
from edgepress_host.press.measure import count_module
from edgepress_host.press.strict import convert
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.compact import Compact
from edgepress_host.techniques.compact.separable import separable
from edgepress_protocol.errors import UsageError
from torch import nn


def compact(bench, model=None, **options):
    step = convert(options, Compact)
    step.check()
    return step.apply_module(compress_zoo.build() if model is None else model, bench)


def right(model, bench):
    seen = bench.split("validate")
    with torch.no_grad():
        return float((model(torch.from_numpy(seen.x.copy())).argmax(1).numpy() == seen.y).mean())


def whole(pair):
    """The weight of the convolution that a separable one is equal to."""
    kernels, mix = pair[0].weight, pair[-1].weight.flatten(1)
    multiplier = len(kernels) // pair[0].groups
    kernels = kernels.unflatten(0, (-1, multiplier)).squeeze(2)
    return torch.einsum("oim,im...->oi...", mix.unflatten(1, (-1, multiplier)), kernels)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_a_separable_convolution_is_kept_as_it_is_and_others_come_nearer_with_more_kernels(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = kind(6, 10, 3, stride=2, padding=1, padding_mode="reflect")
        x = torch.randn(2, 6, *(9, 8)[: layer.weight.ndim - 2])
    made = separable(layer, 1, between=False)
    errors = [
        float((whole(separable(layer, multiplier, between=False)) - layer.weight).norm().detach())
        for multiplier in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2] + 1e-3 * (kind is nn.Conv2d)
    with torch.no_grad():
        layer.weight.copy_(whole(made))
    again = separable(layer, 1, between=False)
    assert torch.allclose(again(x), layer(x), atol=1e-5)
    assert (again[0].stride, again[0].padding_mode, again[0].groups) == (layer.stride, "reflect", 6)


def test_no_other_separable_convolution_is_nearer():
    """Gradient descent from the start that is chosen finds nothing better."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Conv2d(4, 5, 3, bias=False)
    made = separable(layer, 1, between=False)
    optimiser = torch.optim.Adam(made.parameters(), 1e-3)
    first = (whole(made) - layer.weight).square().sum()
    for _ in range(20):
        optimiser.zero_grad()
        (whole(made) - layer.weight.detach()).square().sum().backward()
        optimiser.step()
    assert (whole(made) - layer.weight).square().sum() > first * (1 - 1e-4)


@pytest.fixture(scope="module")
def taught(bench):
    return compact(bench, epochs=4, batch=16, lr=3e-3)


def test_multiply_accumulates_go_down_and_teaching_brings_the_accuracy_back(bench, taught):
    before, after = (count_module(model, bench.calibration(1)) for model in (compress_zoo.build(), taught))
    places = 36
    assert before.macs - after.macs == places * (16 * 16 * 9 - 16 * (9 + 16))
    assert before.params - after.params == 16 * 16 * 9 - 16 * (9 + 16)
    assert right(taught, bench) > right(compress_zoo.build(), bench) - 0.03
    # A ReLU between the two is what the old weights never knew.
    before = compact(bench, between=True, epochs=0)
    after = compact(bench, between=True, alpha=1, epochs=3, batch=16)
    assert apart(after, bench) < 0.7 * apart(before, bench)


def apart(model, bench):
    """Mean absolute difference of the probabilities from those of the original."""
    x = torch.from_numpy(bench.split("validate").x.copy())
    with torch.no_grad():
        return float((model(x).softmax(1) - compress_zoo.build()(x).softmax(1)).abs().mean())


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_the_file_runs_and_answers_as_the_module(format_, bench, taught):
    x = bench.split("validate").x[:8]
    content = exporters.get(format_).export(taught, x[:2])
    got = np.concatenate([outputs[0] for outputs in evaluate.predict(format_, content, x)])
    with torch.no_grad():
        assert np.abs(got - taught(torch.from_numpy(x.copy())).numpy()).max() < 1e-3


def test_each_option_of_the_teaching_counts(bench):
    options = {"samples": 48, "batch": 16}
    made = {
        structure.digest(compact(bench, **options, **more))
        for more in ({}, {"alpha": 0.5}, {"temperature": 1.0}, {"hint": 1.0}, {"multiplier": 2}, {"between": True})
    }
    assert len(made) == 6


def test_hints_bring_a_new_layer_near_to_what_the_old_one_gave(bench, taught):
    x = torch.from_numpy(bench.split("validate").x.copy())

    def differ(model):
        with torch.no_grad():
            found = [net.block.conv(torch.relu(net.stem(x))) for net in (model, compress_zoo.build())]
        return float((found[0] - found[1]).square().mean())

    assert differ(compact(bench, epochs=4, batch=16, lr=3e-3, hint=10.0)) < 0.8 * differ(taught)


def test_a_batch_norm_between_begins_without_an_effect_of_its_own(bench):
    made = compact(bench, epochs=0, between=True)
    kinds = [type(part) for part in made.block.conv]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    x = torch.relu(made.stem(torch.from_numpy(bench.calibration(64).copy())))
    between = made.block.conv[0](x)
    assert torch.allclose(made.block.conv[1](between), between, atol=1e-4)
    assert torch.allclose(made.block.conv[1].running_var, between.var((0, 2, 3), unbiased=False), atol=1e-4)


def test_layers_that_gain_nothing_stay_and_say_why(bench):
    notes = []
    around = msgspec.structs.replace(bench, note=notes.append)
    compact(around, epochs=0)
    assert notes == ["left as they are: stem (1 to 16 channels, min_channels is 8)"]
    notes.clear()
    compact(around, epochs=0, min_channels=1, layers={"block.conv": {"multiplier": 8}, "stem": {"multiplier": 2}})
    assert notes == ["left as they are: block.conv (3,200 multiply-accumulates per place instead of 2,304)"]
    grouped = nn.Sequential(nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 16, 1))
    with pytest.raises(StepFailed, match=r"no convolution became separable: 0 \(has 4 groups already\)"):
        compact(bench, grouped)
    with pytest.raises(StepFailed, match=r"none of them is wider than 1x1, or all are skipped"):
        compact(bench, layers={"*": {"skip": True}})
    only_stem = {"min_channels": 1, "types": {"Conv2d": {"skip": True}}, "layers": {"stem": {"skip": False}}}
    made = compact(bench, epochs=0, **only_stem)
    assert (type(made.stem), type(made.block.conv)) == (nn.Sequential, nn.Conv2d)


def test_names_and_options_that_fit_nothing_are_refused(bench):
    with pytest.raises(UsageError, match=r"layers.'blok.conv': matches no layer; did you mean 'block.conv'\?"):
        compact(bench, layers={"blok.conv": {"skip": True}})
    with pytest.raises(UsageError, match="hint: expected epochs"):
        compact(bench, hint=1.0, epochs=0)
    with pytest.raises(UsageError, match="alpha: expected epochs"):
        compact(bench, alpha=0.5, epochs=0)
    with pytest.raises(UsageError, match="alpha: 0 leaves nothing to learn"):
        compact(bench, alpha=0)
    assert Compact().breaks() == {"zeros", "shared", "grid"}
