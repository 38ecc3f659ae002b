"""Quantization-aware training: what its options make of a module."""

from __future__ import annotations

import compress_zoo
import numpy as np
import pytest
import torch
from edgepress_host import exporters
from edgepress_host.press.measure import count_module
from edgepress_host.press.strict import convert
from edgepress_host.recipe import parse
from edgepress_host.technique import StepFailed, found
from edgepress_host.techniques.qat.grids import GridActivation, best_scale
from edgepress_protocol.errors import UsageError
from qat_lab import FULL, MIXED, UNTRAINED, answers, bench, grids, made, qat, weights_of
from torch.nn import functional


def loss(model):
    samples = bench().split("validate")
    scores, labels = torch.from_numpy(answers(model, samples.x)), torch.from_numpy(samples.y.copy())
    return float(functional.cross_entropy(scores, labels))


def test_scales_of_weights_and_activations_learn():
    before, after = qat(observe=32, **UNTRAINED), qat(observe=32, lr=1e-3)
    for name, layer in weights_of(before).items():
        assert torch.allclose(layer.scale, best_scale(layer.weight.detach(), 8), rtol=0.05)
        assert not torch.allclose(layer.scale, weights_of(after)[name].scale, rtol=1e-4)
    firsts, lasts = grids(before, GridActivation), grids(after, GridActivation)
    assert all(abs(lasts[name].scale / firsts[name].scale - 1) > 1e-4 for name in firsts)
    x = bench().calibration(32)
    assert firsts["x__grid"].scale == pytest.approx((x.max() - x.min()) / 255, rel=1e-3)


def test_ranges_start_from_as_many_samples_as_are_told():
    x = bench().calibration(48)
    for count in (1, 48):
        seen = grids(qat(observe=count, **UNTRAINED), GridActivation)["x__grid"]
        assert seen.scale == pytest.approx((x[:count].max() - x[:count].min()) / 255, rel=1e-3)


@pytest.mark.parametrize("bits", [4, 2, 1])
def test_training_with_few_bits_is_better_than_rounding_alone(bits):
    chosen = {"bits": bits, "edges": bits, "observe": 32}
    assert loss(qat(epochs=3, lr=1e-3, **chosen)) < 0.8 * loss(qat(**chosen, **UNTRAINED))


def test_a_weight_takes_no_more_values_than_its_bits_can_tell():
    for layer in weights_of(made(MIXED)).values():
        steps = layer.weight.detach() / layer.scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        low, high = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1), 1: (-1, 1)}[layer.bits]
        assert low <= steps.min().round()
        assert steps.max().round() <= high
        assert layer.bits > 1 or set(steps.round().flatten().tolist()) == {-1, 1}


def test_a_teacher_keeps_the_answers_nearer_to_the_originals():
    x = bench().split("validate").x
    want = answers(compress_zoo.build(), x)
    apart = [
        np.abs(answers(qat(bits=2, edges=2, epochs=2, lr=2e-3, **options), x) - want).mean()
        for options in ({}, {"teacher": True, "alpha": 0.5}, {"teacher": True}, {"teacher": True, "temperature": 1})
    ]
    assert apart[0] > apart[1] > apart[2]
    assert apart[3] != apart[2]


def test_layers_have_the_bits_asked_for_and_the_first_and_the_last_those_of_the_edges():
    def bits(**options):
        return [layer.bits for layer in weights_of(qat(**options, **UNTRAINED)).values()]

    assert bits() == [8, 8, 8, 8, 8]
    assert bits(bits=4, layers={"block.mix": {"bits": 2}, "hidden": {"bits": 1}}) == [8, 4, 2, 1, 8]
    assert bits(bits=2, edges=4, layers={"head": {"bits": 1}}) == [4, 2, 2, 2, 1]
    assert bits(types={"Linear": {"bits": 4}}, layers={"head": {"bits": 2}}) == [8, 8, 8, 4, 2]


def test_fixed_scales_stay_where_they_start_while_the_weights_learn():
    options = {"bits": 4, "lr": 1e-2, "samples": 128}
    at_first, fixed, learned = (
        [module for module in qat(**more).children() if hasattr(module, "scale")]
        for more in ({"bits": 4} | UNTRAINED, options | {"scales": "fixed"}, options)
    )
    assert len(at_first) > 5
    for start, held, moved in zip(at_first, fixed, learned, strict=True):
        np.testing.assert_allclose(held.scale, start.scale, rtol=1e-6)
        assert not np.allclose(moved.scale, start.scale, rtol=1e-3)
        assert not hasattr(held, "weight") or not torch.equal(held.weight, start.weight)


def test_a_layer_can_be_left_out_by_name_and_by_type():
    left = weights_of(qat(layers={"block.*": {"skip": True}}, **UNTRAINED))
    assert set(left) == {"stem", "hidden", "head"}
    left = weights_of(qat(skip=True, types={"Linear": {"skip": False}}, **UNTRAINED))
    assert set(left) == {"hidden", "head"}
    with pytest.raises(UsageError, match=r"layers\.'blocks\.conv': matches no layer; did you mean 'block\.conv'"):
        qat(layers={"blocks.conv": {"bits": 4}}, **UNTRAINED)
    with pytest.raises(UsageError, match=r"types\.Conv3d: no such layer; this model has Conv2d, Linear"):
        qat(types={"Conv3d": {"bits": 4}}, **UNTRAINED)
    with pytest.raises(StepFailed, match=r"no Conv1d, Conv2d or Linear layer is left to quantize"):
        qat(skip=True, **UNTRAINED)


def test_zeros_of_pruning_stay_zeros_through_training_rounding_and_export():
    sparse = convert({"kind": "magnitude", "ratio": 0.7}, found()["prune"]).apply_module(compress_zoo.build(), bench())
    zeros = sparse.hidden.weight == 0
    made_ = qat(sparse, bits=4, observe=16, samples=128, lr=1e-3)
    weight = weights_of(made_)["hidden"].weight
    assert (weight[zeros] == 0).all()
    assert not torch.equal(weight, sparse.hidden.weight)
    content = exporters.get("onnx").export(made_, bench().split("calibrate").x[:2])
    kept = next(one for one in exporters.get("onnx").weights(content) if one.elements == weight.numel())
    assert kept.nonzero == int(torch.count_nonzero(weight)) <= int((~zeros).sum())


RECIPE = """
[model]
source = "compress_zoo:build"
[data]
source = "compress_zoo:load"
[[variant]]
name = "v"
steps = [{}]
"""


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ('{technique="prune",kind="magnitude",ratio=0.5},{technique="qat",bits=1}', "qat would undo the zeros"),
        ('{technique="prune",kind="magnitude",ratio=0.5},{technique="qat",edges=1}', "qat would undo the zeros"),
        ('{technique="qat"},{technique="qat"}', "qat would undo the low-bit values that qat"),
        ('{technique="qat"},{technique="prune"}', "prune would undo the low-bit values that qat"),
    ],
)
def test_senseless_orders_are_refused(steps, message):
    with pytest.raises(UsageError, match=message):
        parse(RECIPE.format(steps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bits=3", r"steps\[0\]\.bits: invalid enum value 3"),
        ('activations="int8"', r"steps\[0\]\.activations: invalid enum value 'int8'"),
        ("epochs=0", r"steps\[0\]\.epochs: expected int >= 1"),
        ("observe=0", r"steps\[0\]\.observe: expected int >= 1"),
        ("alpha=0.5", r"steps\[0\]\.alpha: it is the teacher's"),
        ('activations="none",observe=8', r"steps\[0\]\.observe: it is for ranges of activations"),
        ("teachers=true", r"steps\[0\]\.teachers: unknown key; did you mean 'teacher'"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(UsageError, match=message):
        parse(RECIPE.format(f'{{technique="qat",{options}}}'))


def test_a_forward_pass_that_cannot_be_captured_fails_in_one_line():
    with pytest.raises(StepFailed, match=r"^the model's forward pass cannot be captured: [^\n]*$"):
        qat(compress_zoo.unexportable(), **UNTRAINED)


def test_parameters_and_work_are_counted_as_in_the_original():
    sample = bench().calibration(1)
    before, after = count_module(compress_zoo.build(), sample), count_module(made(FULL), sample)
    assert after.macs == before.macs
    # Batch normalisation's 32 parameters became 16 of a bias.
    assert after.params == before.params - 16


def test_a_recipe_trains_once_and_keeps_the_result(press, tmp_path):
    recipe = RECIPE.format('{technique="qat",samples=128,observe=16}')
    first, again = (press(recipe, tmp_path / "out")["v.onnx"] for _ in range(2))
    assert (first.verdict, first.steps[0].notes) == ("ok", ())
    assert again.steps[0].seconds == first.steps[0].seconds
