from __future__ import annotations

import itertools
import time

import compress_zoo
import msgspec
import numpy as np
import pytest
import torch
from edgepress_host import evaluate, exporters
from edgepress_host.press import structure
from edgepress_host.press.data import Samples
from edgepress_host.press.measure import wire_bytes
from edgepress_host.press.strict import convert
from edgepress_host.recipe import parse
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.cluster import Cluster
from edgepress_host.techniques.cluster.kmeans import cluster
from edgepress_host.techniques.prune.attention import NarrowAttention
from edgepress_host.techniques.structured.circulant import CirculantLinear
from edgepress_protocol.errors import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

LAYERS = ("stem", "block.conv", "block.mix", "hidden", "head")


@pytest.fixture
def pressed(bench):
    """Apply cluster; returns the model and what it noted. `x` stands in for the samples of all splits."""

    def call(model, x=None, **options):
        notes = []
        around = msgspec.structs.replace(bench, note=notes.append)
        if x is not None:
            samples = Samples(np.asarray(x, np.float32), np.zeros(len(x), np.int64))
            around = msgspec.structs.replace(around, split=lambda _: samples)
        step = convert(options, Cluster)
        step.check()
        return step.apply_module(model, around), notes

    return call


def weight_of(model, name):
    return model.get_submodule(name).weight.detach()


def distinct(weight):
    return len(weight.unique())


def sparse(model, share=0.8):
    for name in LAYERS:
        weight = model.get_submodule(name).weight
        with torch.no_grad():
            weight.mul_(weight.abs() > weight.abs().flatten().quantile(share))
    return model


def top1(model, bench):
    samples = bench.split("validate")
    with torch.no_grad():
        return evaluate.top1(model(torch.from_numpy(samples.x.copy())).numpy(), samples.y)


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


def test_the_start_of_k_means_matters(pressed):
    results = {
        start: weight_of(pressed(compress_zoo.build(), bits=6, init=start)[0], "hidden")
        for start in ("linear", "density", "random")
    }
    assert len({tuple(weight.unique().tolist()) for weight in results.values()}) == 3
    # Evenly spaced values reach the rare large weights, as Deep Compression found.
    assert results["linear"].abs().max() > results["density"].abs().max()


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
    from edgepress_host.techniques.cluster.shared import share

    weight = nn.Parameter(torch.tensor([[0.0, 1.0, 1.1], [2.0, 0.9, 2.1]]))
    shared = share("w", weight, count=3, axis=None, start="linear", keep_zeros=True, chance=torch.Generator())
    assert torch.allclose(weight, torch.tensor([[0, 1, 1], [2.05, 1, 2.05]]))
    gradient = torch.tensor([[5.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    assert shared.spread(gradient).tolist() == [[0, 7, 7], [8, 7, 8]]


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


@pytest.fixture(scope="module")
def clustered(bench):
    """Sparse, of 3 bits, behind it a batch normalisation whose channels differ; with its notes."""
    notes = []
    around = msgspec.structs.replace(bench, note=notes.append)
    model = sparse(compress_zoo.build())
    model.block.bn.weight.data.copy_(torch.linspace(0.5, 2, 16))
    return Cluster(bits=3).apply_module(model, around), notes


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_the_file_holds_the_shared_values_and_travels_small(format_, clustered, originals, bench):
    model, notes = clustered
    assert notes[0] == "batch normalisation was folded into block.conv"
    assert isinstance(model.block.bn, nn.Identity)
    content = exporters.get(format_).export(model, bench.calibration(2))
    assert values_per_tensor(format_, content) <= 8
    assert wire_bytes(content) < 0.3 * wire_bytes(originals[format_])
    x = bench.calibration(4)
    got = np.concatenate([outputs[0] for outputs in evaluate.predict(format_, content, x)])
    with torch.no_grad():
        assert np.allclose(got, model(torch.from_numpy(x.copy())).numpy(), atol=1e-4)


def values_per_tensor(format_, content):
    """The most distinct values that a stored matrix or kernel has."""
    if format_ == "onnx":
        import onnx

        found = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer]
    else:
        from ai_edge_litert.tools import flatbuffer_utils

        model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        held = [(tensor.shape, model.buffers[tensor.buffer].data) for tensor in model.subgraphs[0].tensors]
        found = [
            np.frombuffer(bytes(data), np.float32).reshape(shape)
            for shape, data in held
            if data is not None and len(data) == 4 * np.prod(shape)
        ]
    kernels = [array for array in found if array.ndim > 1 and array.size > 32]
    assert len(kernels) >= 4
    return max(len(np.unique(array)) for array in kernels)


class Branching(nn.Module):
    """The first convolution's output is used before its normalisation, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(4)])

    def forward(self, x):
        x = self.first(x)
        return self.norms[1](self.second(self.norms[0](x) + x)).mean((2, 3))


def test_normalisation_is_folded_only_where_no_output_changes(pressed):
    torch.manual_seed(0)
    model = Branching().eval()
    for norm in model.norms:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 1, 9, 9)
    found, notes = pressed(model, x, bits=8)
    assert notes[0] == "batch normalisation was folded into second"
    assert isinstance(found.norms[0], nn.BatchNorm2d)
    assert torch.allclose(found(x), model(x), atol=0.02)


class Showing(Branching):
    """The first convolution's output is one of the model's own."""

    def forward(self, x):
        x = self.first(x)
        return self.norms[1](self.second(self.norms[0](x))).mean((2, 3)), x


def test_an_output_of_the_model_is_not_normalised_by_folding(pressed):
    torch.manual_seed(0)
    model = Showing().eval()
    model.norms[0].running_mean.uniform_(-1, 1)
    x = torch.randn(2, 1, 9, 9)
    found, notes = pressed(model, x, bits=8)
    assert notes[0] == "batch normalisation was folded into second"
    assert torch.allclose(found(x)[1], model(x)[1], atol=0.02)


def test_normalisation_is_folded_into_transposed_convolutions_and_dense_layers(pressed):
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(4), nn.BatchNorm1d(5)
    for norm in norms:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    layers = nn.ConvTranspose2d(3, 4, 3, bias=False), norms[0], nn.Flatten(), nn.Linear(100, 5), norms[1]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 3, 3, 3)
    found, notes = pressed(model, x, bits=8)
    assert notes[0] == "batch normalisation was folded into 0, 3"
    assert torch.allclose(found(x), model(x), atol=0.03)


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


ROWS = arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 30)), elements=st.floats(-8, 8, width=32))


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 6), st.sampled_from(["linear", "density", "random"]), st.booleans())
def test_the_squared_error_never_grows_from_round_to_round(rows, count, start, sparse):
    weights = torch.from_numpy(rows)
    left_out = weights == 0 if sparse else None

    def error(rounds):
        values, taken = cluster(
            weights, count, start=start, chance=torch.Generator().manual_seed(0), left_out=left_out, rounds=rounds
        )
        assert values.shape == (len(rows), count)
        assert bool((values.diff(dim=1) >= 0).all())
        errors = (values.gather(1, taken) - weights).square()
        nearest = (values[:, :, None] - weights[:, None]).square().min(1).values
        assert torch.allclose(errors, nearest)
        return float((errors if left_out is None else errors.masked_fill(left_out, 0.0)).sum())

    errors = [error(rounds) for rounds in (0, 1, 2, 5, 300)]
    assert all(later <= before + 1e-9 for before, later in itertools.pairwise(errors))


def test_k_means_finds_groups_that_lie_apart():
    groups = torch.cat(
        [
            center + 0.01 * torch.randn(50, generator=torch.Generator().manual_seed(1))
            for center in (-3.0, 0.5, 1.0, 7.0)
        ]
    )
    for start in ("linear", "density", "random"):
        found = cluster(groups[None], 4, start=start, chance=torch.Generator().manual_seed(0))
        if start != "linear":
            assert torch.allclose(found.values[0], torch.tensor([-3.0, 0.5, 1.0, 7.0]).double(), atol=0.01)


def test_a_million_weights_take_seconds():
    weights = torch.randn(1, 2_000_000, generator=torch.Generator().manual_seed(0))
    started = time.process_time()
    cluster(weights, 256, start="linear", chance=torch.Generator())
    assert time.process_time() - started < 10


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
        convert(options, Cluster).check()


def recipe(*steps):
    return f"""
[model]
source = "compress_zoo:build"
[data]
source = "compress_zoo:load"
[[variant]]
name = "v"
steps = [{", ".join(steps)}]
"""


def test_orders_that_undo_the_shared_values_are_refused():
    shared, factors = '{ technique = "cluster" }', '{ technique = "low_rank", rank = 2 }'
    zeros = '{ technique = "prune", kind = "magnitude", ratio = 0.5 }'
    parse(recipe(factors, zeros, shared))
    with pytest.raises(UsageError, match="low_rank would undo the shared values that cluster"):
        parse(recipe(shared, factors))
    with pytest.raises(UsageError, match="cluster would undo the zeros that prune"):
        parse(recipe(zeros, '{ technique = "cluster", keep_zeros = false }'))
    with pytest.raises(UsageError, match="low_rank would undo the zeros that prune"):
        parse(recipe(zeros, factors))
