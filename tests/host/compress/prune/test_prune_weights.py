from __future__ import annotations

import prune_zoo as zoo
import pytest
import torch
from edgepress_host import exporters
from edgepress_host.press import structure
from edgepress_host.technique import StepFailed
from prune_lab import MATRICES, can_be_kept, inputs, sparsity, step, zeros
from torch import nn


def test_a_ratio_holds_in_each_layer_or_over_the_model(coupled, bench):
    each = step(kind="magnitude", ratio=0.75).apply_module(coupled, bench)
    assert all(zeros(layer) == pytest.approx(0.75, abs=0.01) for layer in (each.stem, each.middle, each.hidden))
    whole = step(kind="magnitude", ratio=0.75, scope="global").apply_module(coupled, bench)
    assert sparsity(whole) == pytest.approx(0.75, abs=0.002)
    assert abs(zeros(whole.stem) - 0.75) > 0.05


def test_what_goes_is_smaller_than_what_stays(coupled, bench):
    pruned = step(kind="magnitude", ratio=0.75).apply_module(coupled, bench).hidden.weight
    old = coupled.hidden.weight.abs()
    assert old[pruned == 0].max() <= old[pruned != 0].min()


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_a_layers_own_ratio_holds_in_a_global_scope_even_if_it_is_that_of_all(ratio, coupled, bench):
    made = step(kind="magnitude", ratio=0.75, scope="global", layers={"stem": {"ratio": ratio}})
    pruned = made.apply_module(coupled, bench)
    assert zeros(pruned.stem) == pytest.approx(ratio, abs=0.01)


def test_what_a_layer_has_by_its_name_goes_before_what_it_has_by_its_type(coupled, bench):
    own = {"types": {"Linear": {"ratio": 0.25}}, "layers": {"hidden": {"threshold": 0.1}}}
    pruned = step(kind="magnitude", ratio=0.75, **own).apply_module(coupled, bench)
    assert torch.equal(pruned.hidden.weight != 0, coupled.hidden.weight.abs() > 0.1)
    assert zeros(pruned.head) == pytest.approx(0.25, abs=0.01)
    assert zeros(pruned.middle) == pytest.approx(0.75, abs=0.01)


def test_a_threshold_takes_what_is_at_or_below_it(coupled, bench):
    made = step(kind="magnitude", threshold=0.1, layers={"middle": {"threshold": 0.01}, "last": {"ratio": 0.5}})
    pruned = made.apply_module(coupled, bench)
    assert torch.equal(pruned.hidden.weight != 0, coupled.hidden.weight.abs() > 0.1)
    assert torch.equal(pruned.middle.weight != 0, coupled.middle.weight.abs() > 0.01)
    assert zeros(pruned.last) == pytest.approx(0.5, abs=0.01)


def test_lamp_leaves_more_in_the_layers_that_have_less(coupled, bench):
    plain, lamp = (
        step(kind="magnitude", ratio=0.9, scope="global", importance=name).apply_module(coupled, bench)
        for name in ("l2", "lamp")
    )
    assert sparsity(lamp) == pytest.approx(0.9, abs=0.002)
    layers = {name: layer for name, layer in coupled.named_modules() if isinstance(layer, MATRICES)}
    spread = [max(zeros(one.get_submodule(n)) for n in layers) - zeros(one.deep) for one in (plain, lamp)]
    assert structure.digest(plain) != structure.digest(lamp)
    assert spread[0] != pytest.approx(spread[1], abs=0.01)
    # Of the largest weight of each layer, something stays: its score is 1.
    assert all(zeros(lamp.get_submodule(name)) < 1 for name in layers)


def test_two_of_every_four_inputs_stay_in_the_exported_file(coupled, bench, notes):
    pruned = step(kind="magnitude", pattern="2:4", epochs=1).apply_module(coupled, bench)
    assert notes == ["left as they are, with no multiple of 4 inputs: stem.weight, deep.weight"]
    kept = (pruned.middle.weight != 0).movedim(1, -1).reshape(-1, 4).sum(dim=1)
    assert kept.tolist() == [2] * len(kept)
    stored = {
        w.shape: w for w in exporters.get("onnx").weights(exporters.get("onnx").export(pruned, inputs(2).numpy()))
    }
    dense = stored.get((24, 128)) or stored[(128, 24)]
    assert dense.nonzero == dense.elements // 2


def test_of_every_group_the_largest_stays(coupled, bench):
    pruned = step(kind="magnitude", pattern="1:4").apply_module(coupled, bench)
    assert zeros(pruned.hidden) == 0.75
    kept, sizes = (
        weight.detach().reshape(-1, 4) for weight in (pruned.hidden.weight != 0, coupled.hidden.weight.abs())
    )
    assert torch.equal(kept.int().argmax(dim=1), sizes.argmax(dim=1))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_weights_of_recurrent_layers_go_and_stay_gone(kind, bench):
    original = zoo.seeded(zoo.Recurs, kind)
    pruned = step(kind="magnitude", ratio=0.75, epochs=1).apply_module(original, bench)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        assert float((getattr(pruned.cell, name) == 0).float().mean()) == pytest.approx(0.75, abs=0.01)
    assert can_be_kept(original, pruned)


def test_weights_of_attention_go(encodes, bench):
    pruned = step(kind="magnitude", ratio=0.75).apply_module(encodes, bench)
    attention = pruned.encoder.layers[0].self_attn
    assert float((attention.in_proj_weight == 0).float().mean()) == pytest.approx(0.75, abs=0.01)


def test_layers_of_other_kinds_are_named_and_a_graph_that_cannot_be_traced_is_one_line(bench, notes):
    from edgepress_host.techniques.structured.circulant import circulant

    original = nn.Sequential(
        nn.Flatten(), *(zoo.seeded(nn.Linear, *wide) for wide in ((48, 16), (16, 16), (16, 16), (16, 3)))
    )
    original[2] = circulant(original[2], 4)
    thin = step(kind="magnitude", ratio=0.5).apply_module(original, bench)
    assert notes.pop() == "left as they are, of kinds that keep all weights: 2 (CirculantLinear)"
    assert (zeros(thin[1]), zeros(thin[2]), zeros(thin[3])) == (0.5, 0, 0.5)
    with pytest.raises(StepFailed, match=r"layers cannot be traced .*; kind = 'magnitude' needs none"):
        step(ratio=0.5).apply_module(original, bench)


def test_a_model_without_weights_is_refused(bench):
    with pytest.raises(StepFailed, match="no layer with weights to prune is left"):
        step(kind="magnitude", skip=True).apply_module(zoo.seeded(zoo.Stack), bench)
    with pytest.raises(StepFailed, match="every layer has no multiple of 7 inputs: embed"):
        step(kind="magnitude", pattern="1:7").apply_module(zoo.seeded(zoo.Stack), bench)
