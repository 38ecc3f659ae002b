from __future__ import annotations

import compress_zoo
import numpy as np
import pytest
import torch
from cluster_lab import LAYERS, distinct, sparse, weight_of
from compress_recipes import HEAD, one
from edgepress_host.press import structure
from edgepress_host.recipe import parse
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.cluster import Cluster
from edgepress_host.techniques.prune.attention import NarrowAttention
from edgepress_host.techniques.structured.circulant import CirculantLinear
from edgepress_protocol.errors import UsageError
from technique_lab import step_of, top1
from torch import nn


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_say_how_many_values_each_tensor_has(bits, pressed, bench):
    found, _ = pressed(compress_zoo.build(), bits=bits)
    for name in LAYERS:
        assert distinct(weight_of(found, name)) <= 2**bits
    assert distinct(weight_of(found, "hidden")) == 2**bits
    if bits >= 3:
        assert top1(found, bench) > 0.95


def test_more_bits_come_nearer(pressed):
    def error(**options):
        found, _ = pressed(compress_zoo.build(), **options)
        return float((weight_of(found, "hidden") - weight_of(compress_zoo.build(), "hidden")).norm())

    errors = [error(bits=bits) for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert error(bits=2, granularity="channel") < error(bits=2)


def test_each_channel_can_have_values_of_its_own(pressed):
    found, _ = pressed(compress_zoo.build(), bits=2, granularity="channel")
    for name in LAYERS:
        assert all(distinct(row) <= 4 for row in weight_of(found, name))
    assert distinct(weight_of(found, "hidden")) == 24 * 4
    assert isinstance(found.block.bn, nn.BatchNorm2d)


def test_the_channels_of_a_transposed_convolution_are_its_second_axis(pressed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(6, 5, 3)).eval()
    found, _ = pressed(model, np.zeros((2, 6, 4, 4)), bits=2, granularity="channel")
    assert [distinct(weight_of(found, "0")[:, channel]) for channel in range(5)] == [4] * 5


def test_zeros_stay_and_are_one_of_the_values_even_after_training(pressed):
    before = sparse(compress_zoo.build())
    for training in ({}, {"epochs": 1, "lr": 0.01}):
        found, _ = pressed(before, bits=3, **training)
        for name in ("hidden", "head", "stem", "block.mix"):
            assert torch.equal(weight_of(found, name) == 0, weight_of(before, name) == 0)
            assert distinct(weight_of(found, name)) <= 8
        assert distinct(weight_of(found, "hidden")) == 8


def test_without_keep_zeros_they_are_values_like_all_others(pressed):
    before = sparse(compress_zoo.build(), share=0.3)
    found, _ = pressed(before, bits=1, keep_zeros=False)
    assert not (weight_of(found, "hidden") == 0).any()
    assert distinct(weight_of(found, "hidden")) == 2
    kept, _ = pressed(before, bits=1)
    assert torch.equal(weight_of(kept, "hidden") == 0, weight_of(before, "hidden") == 0)
    assert distinct(weight_of(kept, "hidden")) == 2


def test_gradients_move_the_values_and_better_the_loss(pressed, bench):
    samples = bench.split("train")
    x, y = torch.from_numpy(samples.x.copy()), torch.from_numpy(samples.y.copy())

    def loss(model):
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(x), y))

    still, _ = pressed(compress_zoo.build(), bits=1)
    moved, _ = pressed(compress_zoo.build(), bits=1, epochs=3, lr=1e-3)
    assert loss(moved) < 0.7 * loss(still)
    for name in LAYERS:
        assert distinct(weight_of(moved, name)) == 2
        assert not torch.equal(weight_of(moved, name).unique(), weight_of(still, name).unique())
        # Which weights share a value stays as k-means said.
        assert torch.equal(
            weight_of(moved, name) == weight_of(moved, name).max(),
            weight_of(still, name) == weight_of(still, name).max(),
        )


def test_the_gradient_of_a_value_is_the_sum_over_its_weights():
    from edgepress_host.techniques.cluster.shared import share, together

    weight = nn.Parameter(torch.tensor([[0.0, 1.0, 1.1], [2.0, 0.9, 2.1]]))
    shared = share("w", weight, count=3, axis=None, start="linear", keep_zeros=True, chance=torch.Generator())
    assert torch.allclose(weight, torch.tensor([[0, 1, 1], [2.05, 1, 2.05]]))
    gradient = torch.tensor([[5.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    with together([shared]):
        (weight * gradient).sum().backward()
    assert weight.grad.tolist() == [[0, 7, 7], [8, 7, 8]]


def test_the_teacher_changes_what_is_learned(pressed):
    results = [
        pressed(compress_zoo.build(), bits=2, epochs=1, samples=64, **more)[0]
        for more in ({}, {"teacher": True}, {"teacher": True, "alpha": 0.1}, {"teacher": True, "temperature": 1.0})
    ]
    assert len({structure.digest(model) for model in results}) == 4


def test_a_layers_own_options_go_before_those_of_its_type(pressed):
    found, _ = pressed(
        compress_zoo.build(),
        bits=4,
        types={"Linear": {"bits": 2}, "Conv2d": {"skip": True}},
        layers={"head": {"bits": 1}, "block.mix": {"skip": False, "bits": 3}},
    )
    assert [distinct(weight_of(found, name)) for name in ("hidden", "head", "block.mix")] == [4, 2, 8]
    assert torch.equal(weight_of(found, "stem"), weight_of(compress_zoo.build(), "stem"))
    assert torch.equal(found.hidden.bias, compress_zoo.build().hidden.bias)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 8, batch_first=True), nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.gru(self.lstm(x)[0])[0]
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_recurrent_and_attention_layers_share_values_and_train(pressed):
    torch.manual_seed(0)
    model, x = Sequence().eval(), torch.randn(8, 5, 6)
    found, notes = pressed(model, x, bits=2, epochs=2, lr=0.01)
    still, _ = pressed(model, x, bits=2)
    for name, weight in found.named_parameters():
        if weight.ndim > 1:
            assert distinct(weight.detach()) == 4, name
            assert not torch.equal(weight, still.get_parameter(name)), name
    assert notes[0].startswith("9 tensors share values; ")
    again = structure.rebuild(model, structure.describe(found), structure.tensors(found))
    assert torch.equal(again(x), found(x))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return x @ self.weight


def test_layers_of_our_own_share_values_and_those_of_other_kinds_are_named(pressed):
    torch.manual_seed(0)
    narrow = NarrowAttention(4, 4, 4, num_heads=3, head_dim=2, dropout=0.0, batch_first=True)
    with torch.no_grad():
        for weight in narrow.parameters():
            weight.uniform_(-1, 1)
    found, notes = pressed(narrow, np.zeros((2, 3, 4)), bits=2)
    assert {distinct(weight) for weight in found.parameters() if weight.ndim > 1} == {4}
    found, notes = pressed(nn.Sequential(CirculantLinear(8, 5, 2), Own()), np.zeros((2, 8)), bits=1)
    assert distinct(found[0].weight) == 2
    assert "left as they are, of kinds that share no values: 1 (Own)" in notes


def test_a_clustered_model_clustered_again_stays_as_it_is(pressed):
    once, _ = pressed(compress_zoo.build(), bits=3)
    twice, _ = pressed(once, bits=3)
    assert structure.digest(once) == structure.digest(twice)


def test_a_pattern_that_matches_nothing_and_a_model_without_layers_are_refused(pressed):
    with pytest.raises(UsageError, match=r"layers\.'heads': matches no layer; did you mean 'head'"):
        pressed(compress_zoo.build(), layers={"heads": {"bits": 2}})
    with pytest.raises(StepFailed, match="no dense, convolutional, recurrent or attention layer is left"):
        pressed(nn.Sequential(nn.ReLU()), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"bits": 9}, "bits: "),
        ({"bits": 0}, "bits: "),
        ({"granularity": "row"}, "granularity: "),
        ({"init": "best"}, "init: "),
        ({"layers": {"a": {"bits": 9}}}, r"layers.*bits: "),
        ({"teacher": True}, "teacher: it teaches while the step trains"),
        ({"alpha": 0.5}, "alpha: it is the teacher's"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, line):
    with pytest.raises(UsageError, match=line):
        step_of(Cluster, **options)


def test_orders_that_undo_the_shared_values_are_refused():
    shared, factors = '{ technique = "cluster" }', '{ technique = "low_rank", rank = 2 }'
    zeros = '{ technique = "prune", kind = "magnitude", ratio = 0.5 }'
    parse(HEAD + one(factors, zeros, shared))
    with pytest.raises(UsageError, match="low_rank would undo the shared values that cluster"):
        parse(HEAD + one(shared, factors))
    with pytest.raises(UsageError, match="cluster would undo the zeros that prune"):
        parse(HEAD + one(zeros, '{ technique = "cluster", keep_zeros = false }'))
    with pytest.raises(UsageError, match="low_rank would undo the zeros that prune"):
        parse(HEAD + one(zeros, factors))
