from __future__ import annotations

import re

import compress_zoo
import numpy as np
import pytest
import torch
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.low_rank.evbmf import signal_rank
from edgepress_host.techniques.low_rank.ranks import Option, allocate
from hypothesis import given
from hypothesis import strategies as st
from low_rank_lab import kernel_of, macs, planted
from technique_lab import noise, top1
from torch import nn


def test_energy_keeps_what_holds_that_share_and_a_layers_own_rule_goes_first(pressed):
    original = compress_zoo.build()
    thin, _ = pressed(
        original, rank=2, layers={"hidden": {"energy": 0.7}}, types={"Conv2d": {"skip": True}, "Linear": {"rank": 1}}
    )
    values = torch.linalg.svdvals(original.hidden.weight.detach()).square()
    rank = thin.hidden[0].out_features
    assert values[:rank].sum() / values.sum() >= 0.7 > values[: rank - 1].sum() / values.sum()
    assert thin.head[0].out_features == 1
    assert isinstance(thin.block.mix, nn.Conv2d)


@pytest.mark.parametrize("method", ["tucker", "spatial", "cp"])
def test_factors_of_a_kernel_hold_the_energy_that_was_asked_for_and_little_more(method, pressed):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(planted("cp", layer.weight.shape, 4) + 0.3 * layer.weight)
    model, x = nn.Sequential(layer).eval(), noise(2, 16, 8, 8)

    def lost(energy):
        thin, _ = pressed(model, x, method=method, energy=energy)
        return float((kernel_of(thin[0], 3) - layer.weight).square().sum() / layer.weight.square().sum())

    few, many = lost(0.7), lost(0.95)
    assert few <= 0.3 + 1e-4
    assert many <= 0.05 + 1e-4
    assert few > 0.1


@pytest.mark.parametrize(("rank", "shape"), [(0, (60, 100)), (1, (100, 60)), (5, (40, 400)), (20, (60, 100))])
def test_evbmf_finds_the_rank_that_was_planted_in_noise(rank, shape):
    chance = np.random.default_rng(rank)
    signal = chance.standard_normal((shape[0], rank)) @ chance.standard_normal((rank, shape[1]))
    values = np.linalg.svd(signal + 0.5 * chance.standard_normal(shape), compute_uv=False)
    assert signal_rank(values, *shape) == rank
    assert signal_rank(1000 * values, *shape) == rank


def test_evbmf_ranks_layers_and_leaves_pure_noise(pressed):
    dense, conv, other = nn.Linear(64, 80), nn.Conv2d(32, 40, 3, padding=1), nn.Linear(80, 40)
    with torch.no_grad():
        dense.weight.copy_(noise(80, 4) @ noise(4, 64, seed=1) + 0.3 * noise(80, 64, seed=2))
        conv.weight.copy_(planted("tucker", conv.weight.shape, 3) + 0.1 * noise(40, 32, 3, 3, seed=3))
        other.weight.copy_(noise(40, 80, seed=4))
    thin, _ = pressed(nn.Sequential(conv).eval(), noise(2, 32, 6, 6), method="tucker", evbmf=True)
    assert [piece.out_channels for piece in thin[0]] == [3, 3, 40]
    thin, notes = pressed(nn.Sequential(dense, other).eval(), noise(2, 64), evbmf=True)
    assert thin[0][0].out_features == 4
    assert notes[0] == "1 is left as it is: EVBMF finds no signal above the noise"


@pytest.mark.parametrize("budget_of", ["macs", "params"])
def test_a_budget_is_met_over_all_layers_together(budget_of, pressed):
    original, x = compress_zoo.build(), noise(1, 1, 12, 12)

    def size(model):
        if budget_of == "macs":
            return macs(model, x)
        return sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)

    shares = []
    for budget in (0.6, 0.3):
        thin, _ = pressed(original, x, method="auto", budget=budget, budget_of=budget_of)
        shares.append(size(thin) / size(original))
        assert budget - 0.1 < shares[-1] <= budget


def test_a_budget_out_of_reach_is_refused_with_what_can_be_reached(pressed):
    with pytest.raises(StepFailed, match=r"budget: 0\.01 of the macs cannot be reached, the least ranks leave 0\.\d+"):
        pressed(compress_zoo.build(), budget=0.01)


OPTIONS = st.lists(
    st.tuples(st.integers(0, 1000), st.floats(0, 1)).map(lambda pair: Option(*pair)), min_size=1, max_size=6
)


@given(st.lists(OPTIONS, min_size=1, max_size=4), st.integers(0, 4000))
def test_an_allocation_keeps_to_the_limit_or_none_can(layers, limit):
    options = {str(number): [Option(1000, 0.0), *some] for number, some in enumerate(layers)}
    chosen = allocate(options, limit)
    least = sum(min(option.cost for option in some) for some in options.values())
    if chosen is None:
        assert least > limit
    else:
        assert sum(options[name][place].cost for name, place in chosen.items()) <= limit


def test_an_allocation_takes_first_where_the_least_is_lost():
    cheap = [Option(100, 0.0), Option(50, 0.01), Option(10, 0.5)]
    dear = [Option(100, 0.0), Option(50, 0.3)]
    assert allocate({"cheap": cheap, "dear": dear}, 150) == {"cheap": 1, "dear": 0}
    assert allocate({"cheap": cheap, "dear": dear}, 100) == {"cheap": 1, "dear": 1}
    assert allocate({"cheap": cheap, "dear": dear}, 59) is None


def test_max_drop_compresses_each_layer_as_far_as_accuracy_on_validate_lets_it(pressed, bench):
    original, x = compress_zoo.build(), noise(1, 1, 12, 12)
    names, sizes = {"hidden", "block.mix", "head"}, []
    for max_drop in (0.0, 0.2):
        thin, _ = pressed(original, max_drop=max_drop)
        sizes.append(macs(thin, x))
        for name in names:
            others = {other: {"skip": True} for other in names - {name}}
            alone, _ = pressed(original, max_drop=max_drop, layers=others)
            assert top1(original, bench) - top1(alone, bench) <= max_drop + 1e-9
    assert sizes[1] < sizes[0] < macs(original, x)


@pytest.mark.parametrize(
    ("rule", "layer"),
    [
        ({"energy": 0.8}, "hidden"),
        ({"method": "tucker", "energy": 0.6}, "block.conv"),
        ({"method": "cp", "energy": 0.6}, "block.conv"),
        ({"method": "spatial", "energy": 0.6}, "block.conv"),
        ({"method": "tucker", "evbmf": True}, "block.conv"),
        ({"budget": 0.5, "budget_of": "params"}, "hidden"),
        ({"max_drop": 0.1}, "hidden"),
    ],
    ids=str,
)
def test_ranks_are_rounded_to_multiples_by_every_rule(rule, layer, pressed):
    other = {name: {"skip": True} for name in ("stem", "block.conv", "block.mix", "hidden", "head") if name != layer}

    def ranks(**options):
        _, notes = pressed(compress_zoo.build(), layers=other, **rule, **options)
        found = re.search(r"of rank ([\d×]+) ", notes[-1])
        return [int(rank) for rank in found[1].split("×")]

    assert any(rank % 4 for rank in ranks())
    assert not any(rank % 4 for rank in ranks(round_to=4))


def test_evbmf_rounds_the_rank_of_a_dense_layer_up(pressed):
    layer = nn.Linear(64, 80)
    with torch.no_grad():
        layer.weight.copy_(noise(80, 5) @ noise(5, 64, seed=1) + 0.3 * noise(80, 64, seed=2))
    model, x = nn.Sequential(layer).eval(), noise(2, 64)
    thin = [pressed(model, x, evbmf=True, round_to=multiple)[0] for multiple in (1, 4)]
    assert [one[0][0].out_features for one in thin] == [5, 8]
