from __future__ import annotations

import msgspec
import numpy as np
import prune_zoo as zoo
import pytest
import torch
from edgepress_host import evaluate
from edgepress_host.press import structure
from edgepress_host.press.data import Samples
from edgepress_host.technique import StepFailed
from prune_lab import can_be_kept, inputs, step
from torch import nn


def test_the_block_that_adds_nothing_goes(stack, bench, notes):
    useless = zoo.Residual(useful=False)
    original = structure.rebuild(stack, structure.describe(stack), structure.tensors(stack))
    original.blocks[1] = useless
    before = original(inputs(96)).detach().numpy()
    same = msgspec.structs.replace(bench, metric=lambda outputs, _: -float(np.abs(outputs - before).sum()))
    pruned = step(kind="block", max_drop=0.01).apply_module(original, same)
    assert isinstance(pruned.blocks[1], nn.Identity)
    assert notes == ["taken out: blocks.1"]
    torch.testing.assert_close(pruned(inputs()), original(inputs()))
    assert can_be_kept(original, pruned)


def test_the_drop_on_validate_says_how_many_go(stack, bench):
    samples = Samples(*zoo.load("validate"))

    def accuracy(model):
        with torch.no_grad():
            return evaluate.top1(model(torch.from_numpy(samples.x)).numpy(), samples.y)

    few, all_ = (step(kind="block", max_drop=drop).apply_module(stack, bench) for drop in (0.02, 1.0))
    assert accuracy(few) >= accuracy(stack) - 0.02
    left = [sum(isinstance(layer, nn.Linear) for layer in model.modules()) for model in (few, all_)]
    assert left[1] < left[0]


def test_a_layer_of_torchs_own_transformer_goes(encodes, bench, notes):
    pruned = step(kind="block", count=1, layers={"encoder.layers.1": {"skip": True}}).apply_module(encodes, bench)
    assert notes == ["taken out: encoder.layers.0"]
    kept, right = pruned.encoder.layers, encodes.encoder.layers[1]
    assert torch.equal(kept[0].linear1.weight, right.linear1.weight)
    assert (len(kept), pruned.encoder.num_layers) == (1, 1)
    assert can_be_kept(encodes, pruned)


def test_a_layers_batch_norm_goes_with_it(bench, notes):
    model = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    pruned = step(kind="block", count=1).apply_module(model.eval(), bench)
    assert notes == ["taken out: 0"]
    assert [type(pruned[at]) for at in (0, 1)] == [nn.Identity, nn.Identity]
    torch.testing.assert_close(pruned(inputs()), model[4](inputs().relu().flatten(1)))
    assert can_be_kept(model, pruned)


def test_too_many_are_asked_for(encodes, bench, notes):
    pruned = step(kind="block", count=5).apply_module(encodes, bench)
    assert len(pruned.encoder.layers) == 1
    assert notes[0] == "only 1 of 5 blocks could go"


def test_rounds_train_between_blocks(stack, bench):
    options = {"kind": "block", "count": 2, "epochs": 1, "layers": {"blocks.?.*": {"skip": True}}}
    rounds = step(**options, schedule="iterative", iterations=2).apply_module(stack, bench)
    assert sum(isinstance(block, nn.Identity) for block in rounds.blocks) == 2
    assert structure.digest(rounds) != structure.digest(step(**options).apply_module(stack, bench))


def test_what_cannot_be_done_is_one_line(stack, bench):
    with pytest.raises(StepFailed, match="no layer or block gives back the shape of its input"):
        step(kind="block", count=1).apply_module(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), bench)
    # The first model that is scored is the one as it came.
    scores = iter([1.0])
    spoiled = msgspec.structs.replace(bench, metric=lambda *_: next(scores, 0.5))
    with pytest.raises(StepFailed, match=r"no block can go within max_drop = 0\.0"):
        step(kind="block", max_drop=0.0).apply_module(stack, spoiled)
