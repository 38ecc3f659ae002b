from __future__ import annotations

import msgspec
import numpy as np
import prune_zoo as zoo
import pytest
import torch
from edgepress_host.press import structure
from edgepress_host.press.data import Samples
from edgepress_host.technique import StepFailed
from prune_lab import can_be_kept, step
from torch import nn


@pytest.mark.parametrize("importance", ["l1", "l2", "bn_scale", "lamp", "fpgm", "taylor"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_coupled_layers_lose_the_same_channels_and_the_model_can_be_kept(importance, scope, coupled, bench):
    pruned = step(ratio=0.5, importance=importance, scope=scope, epochs=1).apply_module(coupled, bench)
    width = pruned.stem.out_channels
    assert width < 16
    assert width % 4 == 0
    assert {pruned.norm.num_features, pruned.deep.groups, pruned.middle.in_channels} == {width}
    assert pruned.last.out_channels == width
    assert pruned.hidden.in_features == width * zoo.WIDTH
    assert pruned.head.out_features == zoo.CLASSES
    assert can_be_kept(coupled, pruned)


def test_importances_choose_differently(coupled, bench):
    chosen = {
        importance: structure.digest(
            step(ratio=0.5, importance=importance, scope="global").apply_module(coupled, bench)
        )
        for importance in ("l1", "l2", "bn_scale", "lamp", "fpgm", "taylor")
    }
    assert len(set(chosen.values())) == len(chosen)


def test_the_scale_of_batch_normalisation_decides(coupled, bench, notes):
    original = structure.rebuild(coupled, structure.describe(coupled), structure.tensors(coupled))
    with torch.no_grad():
        original.norm.weight.copy_(torch.arange(1.0, 17.0))
    pruned = step(ratio=0.5, importance="bn_scale").apply_module(original, bench)
    assert pruned.norm.weight.tolist() == list(range(9, 17))
    assert notes == ["kept all channels: middle, hidden"]
    with pytest.raises(StepFailed, match="bn_scale: this model has no batch normalisation"):
        step(ratio=0.5, importance="bn_scale").apply_module(zoo.seeded(zoo.Stack), bench)


def test_the_geometric_median_goes_first_and_not_the_smallest_or_what_is_near_the_mean(bench):
    line = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    sizes = [*range(1, 16), 100]
    with torch.no_grad():
        # On a line: the ones in the middle are near to all others, the small ones are far from most; the mean is 13.75.
        line[1].weight.copy_(torch.tensor(sizes)[:, None].repeat(1, 48))
    pruned = step(ratio=0.5, importance="fpgm").apply_module(line, bench)
    assert pruned[1].weight[:, 0].tolist() == [1, 2, 3, 4, 13, 14, 15, 100]
    small = step(ratio=0.5, importance="l2").apply_module(line, bench)
    assert small[1].weight[:, 0].tolist() == sizes[8:]


def test_by_taylor_what_changes_the_loss_least_goes_however_large(bench):
    line = nn.Sequential(nn.Flatten(), zoo.seeded(nn.Linear, 48, 16), nn.ReLU(), zoo.seeded(nn.Linear, 16, 3)).eval()
    with torch.no_grad():
        # Large, but all three scores get the same of it: the loss does not go by it.
        line[1].weight[:8] *= 3
        line[3].weight[:, :8] = 3.0
    pruned = step(ratio=0.5, importance="taylor").apply_module(line, bench)
    assert torch.equal(pruned[1].weight, line[1].weight[8:])
    large = step(ratio=0.5, importance="l1").apply_module(line, bench)
    assert torch.equal(large[1].weight, line[1].weight[:8])


def test_widths_are_multiples_of_round_to(coupled, bench):
    for multiple, width in ((1, 17), (8, 16), (16, 16)):
        pruned = step(ratio=0.45, round_to=multiple).apply_module(coupled, bench)
        assert pruned.middle.out_channels == width


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_layers_own_ratio_holds_in_either_scope(scope, coupled, bench):
    own = {"layers": {"middle": {"ratio": 0.75}}, "types": {"Linear": {"ratio": 0.25}}}
    pruned = step(ratio=0.5, scope=scope, **own).apply_module(coupled, bench)
    assert (pruned.middle.out_channels, pruned.hidden.out_features) == (8, 16)


def test_rounds_end_at_the_width_that_one_step_reaches(coupled, bench):
    rounds = step(ratio=0.75, schedule="iterative", iterations=2, epochs=1).apply_module(coupled, bench)
    once = step(ratio=0.75, epochs=1).apply_module(coupled, bench)
    assert (rounds.middle.out_channels, rounds.hidden.out_features) == (8, 4)
    assert (once.middle.out_channels, once.hidden.out_features) == (8, 4)
    assert structure.digest(rounds) != structure.digest(once)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_recurrent_layer_is_refused_by_name_and_what_feeds_it_keeps_its_width(kind, bench, notes):
    original = zoo.seeded(zoo.Recurs, kind)
    name = kind.__name__
    with pytest.raises(StepFailed, match=rf"^cell: a layer of type {name} cannot lose channels; skip it"):
        step(ratio=0.5).apply_module(original, bench)
    pruned = step(ratio=0.5, layers={"cell": {"skip": True}}).apply_module(original, bench)
    assert (pruned.embed.out_features, pruned.wide.out_features) == (4, 8)
    assert (pruned.deep.out_features, pruned.cell.hidden_size, pruned.wide.in_features) == (12, 16, 16)
    assert notes == ["kept all channels: deep"]


def test_what_attention_reads_keeps_its_width(encodes, bench, notes):
    pruned = step(ratio=0.5).apply_module(encodes, bench)
    assert [layer.linear1.out_features for layer in pruned.encoder.layers] == [16, 16]
    assert pruned.embed.out_features == 16
    assert "embed" in notes[0]


def test_every_output_keeps_its_width(bench):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            features = self.first(x)
            return self.head(self.second(features).mean((2, 3))), features

    torch.manual_seed(0)
    samples = Samples(np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, np.int64))
    pruned = step(ratio=0.5).apply_module(Two(), msgspec.structs.replace(bench, split=lambda _: samples))
    assert (pruned.first.out_channels, pruned.second.out_channels) == (16, 8)
