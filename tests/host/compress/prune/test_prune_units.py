from __future__ import annotations

import copy
import functools

import prune_zoo as zoo
import pytest
import torch
from edgepress_host.technique import StepFailed
from edgepress_protocol.errors import UsageError
from prune_lab import can_be_kept, inputs, step
from technique_lab import assert_file_answers_as
from torch import nn


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
def test_heads_of_torchs_own_transformer_go(importance, encodes, bench):
    pruned = step(kind="heads", ratio=0.5, importance=importance).apply_module(encodes, bench)
    assert [layer.self_attn.num_heads for layer in pruned.encoder.layers] == [2, 2]
    assert pruned.encoder.layers[0].self_attn.q_proj_weight.shape == (8, 16)
    assert can_be_kept(encodes, pruned)


def test_torchs_attention_computes_the_same_in_the_form_that_can_lose_heads():
    from edgepress_host.techniques.prune.attention import unfused

    torch.manual_seed(0)
    x, y = torch.randn(3, 5, 8), torch.randn(3, 7, 6)
    causal = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    plain = nn.MultiheadAttention(8, 4, batch_first=True).eval()
    late = nn.MultiheadAttention(8, 2, bias=False).eval()
    cross = nn.MultiheadAttention(8, 4, kdim=6, vdim=6, batch_first=True).eval()
    per_head = causal.repeat(12, 1, 1).float() * -2
    for attention, arguments, options in (
        (plain, (x, x, x), {}),
        (plain, (x, x, x), {"attn_mask": causal, "key_padding_mask": padding, "need_weights": False}),
        (plain, (x, x, x), {"attn_mask": per_head, "average_attn_weights": False}),
        (plain, (x[0], x[0], x[0]), {"attn_mask": causal.float() * -3}),
        (late, (x, x, x), {}),
        (cross, (x, y, y), {}),
    ):
        want, weights = attention(*arguments, **options)
        got, seen = unfused(attention, "a")(*arguments, **options)
        torch.testing.assert_close(got, want)
        if weights is not None:
            torch.testing.assert_close(seen, weights)


@pytest.mark.parametrize("form", [{}, {"joint": True}, {"joint": True, "mixed": True}, {"inner": True}], ids=str)
def test_heads_of_attention_by_hand_go_and_the_others_compute_as_before(form, bench):
    original = zoo.seeded(zoo.Reads, functools.partial(zoo.Attends, **form))
    with torch.no_grad():
        # The second and the last head say nothing: without them, nothing changes.
        original.attention.out_proj.weight[:, 2:4] = 0
        original.attention.out_proj.weight[:, 6:8] = 0
        original.attention.out_proj.weight[:, [0, 1, 4, 5]] *= 10
    pruned = step(kind="heads", ratio=0.5).apply_module(original, bench)
    assert pruned.attention.num_heads == 2
    assert pruned.attention.out_proj.in_features == 4
    torch.testing.assert_close(pruned(inputs()), original(inputs()))
    assert can_be_kept(original, pruned)


@pytest.mark.parametrize(("importance", "kept"), [("l1", [0, 1]), ("l2", [2, 3])])
def test_heads_of_many_small_weights_stay_by_l1_and_those_of_few_large_ones_by_l2(importance, kept, bench):
    original = zoo.seeded(zoo.Reads, zoo.Attends)
    attention = original.attention
    with torch.no_grad():
        # In norms of order 1 and 2: 6.4 and 0.8 for the first two heads, 2.8 and 2 for the others.
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            layer.weight[:4], layer.weight[4:] = 0.1, 0
        attention.out_proj.weight[:, :4], attention.out_proj.weight[:, 4:] = 0.1, 0
        attention.out_proj.weight[0, 4:] = 2**0.5
    pruned = step(kind="heads", ratio=0.5, importance=importance).apply_module(original, bench)
    assert kept_heads(original, pruned) == kept


def kept_heads(original, pruned):
    """By their biases, which no score goes by."""
    left = pruned.attention.q_proj.bias.tolist()
    return [head for head in range(4) if original.attention.q_proj.bias[2 * head].item() in left]


def test_heads_that_the_loss_does_not_go_by_go_first_by_taylor_however_large(bench):
    original = deaf(zoo.seeded(zoo.Reads, zoo.Attends))
    with torch.no_grad():
        # The first two heads say much, to features that nobody reads.
        original.attention.out_proj.weight[:4, :4] = 0
        original.attention.out_proj.weight[4:, :4] = 3
        original.feed[2].weight.zero_()
    kept = [
        kept_heads(original, step(kind="heads", ratio=0.5, importance=importance).apply_module(original, bench))
        for importance in ("taylor", "l2")
    ]
    assert kept == [[2, 3], [0, 1]]


def deaf(model):
    """The same net, whose last layer reads the first four of eight features alone."""
    with torch.no_grad():
        model.head.weight[:, 4:] = 0
    return model


def test_code_that_goes_by_the_old_width_is_refused_by_name(bench):
    derived = zoo.seeded(zoo.Reads, functools.partial(zoo.Attends, derive=True))
    with pytest.raises(StepFailed, match=r"^attention: its own code goes by the width that it was made with"):
        step(kind="heads", ratio=0.5).apply_module(derived, bench)


def test_over_the_model_the_layer_that_says_less_loses_more(bench):
    original = zoo.seeded(zoo.Encodes)
    weight = original.encoder.layers[0].self_attn
    with torch.no_grad():
        for part in (
            weight.in_proj_weight.view(3, 4, -1),
            weight.out_proj.weight.view(16, 4, 4).movedim(0, 2)[None],
        ):
            part[:, 1:] *= 0.01
    pruned = step(kind="heads", ratio=0.375, scope="global").apply_module(original, bench)
    assert [layer.self_attn.num_heads for layer in pruned.encoder.layers] == [1, 4]


def test_an_attentions_own_ratio_and_rounds(encodes, bench):
    options = {"ratio": 0.75, "layers": {"encoder.layers.0*": {"ratio": 0.25}}}
    made = step(kind="heads", schedule="iterative", iterations=2, epochs=1, **options)
    pruned = made.apply_module(encodes, bench)
    assert [layer.self_attn.num_heads for layer in pruned.encoder.layers] == [3, 1]


def test_what_cannot_be_done_is_one_line(bench, encodes):
    with pytest.raises(StepFailed, match="this model has no attention that is not skipped"):
        step(kind="heads", ratio=0.5).apply_module(zoo.seeded(zoo.Stack), bench)
    with pytest.raises(StepFailed, match="this model has no feed-forward part"):
        step(kind="hidden", ratio=0.5, types={"Linear": {"skip": True}}).apply_module(encodes, bench)
    with pytest.raises(StepFailed, match=r"the ratio takes nothing from encoder\.layers\.0\.self_attn"):
        step(kind="heads", ratio=0.1).apply_module(encodes, bench)
    with pytest.raises(UsageError, match=r"layers\.'encoder\.layers\.0\.attn': matches no layer; did you mean"):
        step(kind="heads", layers={"encoder.layers.0.attn": {"skip": True}}).apply_module(encodes, bench)
    odd = zoo.seeded(zoo.Encodes)
    odd.encoder.layers[1].self_attn.add_zero_attn = True
    with pytest.raises(StepFailed, match=r"^encoder\.layers\.1\.self_attn: attention with bias_k or add_zero_attn"):
        step(kind="heads", ratio=0.5).apply_module(odd, bench)


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
def test_the_units_that_say_nothing_go_and_nothing_changes(importance, bench):
    original = zoo.seeded(zoo.Reads, zoo.Attends)
    with torch.no_grad():
        original.feed[0].weight[::2] = 0
        original.feed[0].bias[::2] = 0
        original.feed[2].weight[:, ::2] = 0
    pruned = step(kind="hidden", ratio=0.5, importance=importance).apply_module(original, bench)
    assert pruned.feed[0].out_features == pruned.feed[2].in_features == 8
    torch.testing.assert_close(pruned(inputs()), original(inputs()))


def test_each_importance_ranks_hidden_units_in_its_own_way(bench):
    original = deaf(zoo.seeded(zoo.Reads, zoo.Attends))
    up, down = original.feed[0], original.feed[2]
    with torch.no_grad():
        # In norms of order 1 and 2: 1.6 and 0.4 for the even units; 1 and 1 for the odd ones, which nobody reads.
        up.weight[::2], up.weight[1::2] = 0.1, 0
        down.weight[:, ::2], down.weight[:, 1::2] = 0.1, 0
        down.weight[7, 1::2] = 1
    kept = {}
    for importance in ("l1", "l2", "taylor"):
        left = step(kind="hidden", ratio=0.5, importance=importance).apply_module(original, bench).feed[0].bias.tolist()
        kept[importance] = {unit % 2 for unit, bias in enumerate(up.bias.tolist()) if bias in left}
    assert kept == {"l1": {0}, "l2": {1}, "taylor": {0}}


def test_over_the_model_the_part_whose_units_say_less_loses_more(encodes, bench):
    original = copy.deepcopy(encodes)
    first = original.encoder.layers[0]
    with torch.no_grad():
        first.linear1.weight[4:] *= 0.01
        first.linear2.weight[:, 4:] *= 0.01
    pruned = step(kind="hidden", ratio=0.375, round_to=1, scope="global").apply_module(original, bench)
    assert [layer.linear1.out_features for layer in pruned.encoder.layers] == [8, 32]


def test_widths_are_multiples_of_round_to_and_a_layer_may_have_its_own_ratio(encodes, bench):
    layers = {"encoder.layers.1.linear1": {"ratio": 0.2}}
    pruned = step(kind="hidden", ratio=0.6, round_to=8, layers=layers).apply_module(encodes, bench)
    assert [layer.linear1.out_features for layer in pruned.encoder.layers] == [8, 24]
    fine = step(kind="hidden", ratio=0.6, round_to=1, scope="global").apply_module(encodes, bench)
    assert sum(layer.linear1.out_features for layer in fine.encoder.layers) == 64 - 38


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_a_transformer_without_a_layer_heads_and_hidden_units_runs_in_both_runtimes(format_, encodes, bench):
    model = encodes
    for options in ({"kind": "block", "count": 1}, {"kind": "heads", "ratio": 0.5}, {"kind": "hidden", "ratio": 0.5}):
        model = step(**options).apply_module(model, bench)
    x = zoo.load("validate")[0][:4]
    assert_file_answers_as(model, format_, x)
