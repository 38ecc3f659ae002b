from __future__ import annotations

import compress_zoo
import msgspec
import numpy as np
import pytest
import torch
from edgepress_host import evaluate, exporters
from edgepress_host.press import structure
from edgepress_host.press.data import Samples
from edgepress_host.press.measure import count_module
from edgepress_host.press.strict import convert
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.low_rank import LowRank
from edgepress_host.techniques.low_rank.evbmf import signal_rank
from edgepress_host.techniques.low_rank.ranks import Option, allocate
from edgepress_protocol.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st
from torch import nn


def step(**options):
    made = convert(options, LowRank)
    made.check()
    return made


@pytest.fixture
def pressed(bench):
    """Apply low_rank; returns the model and what it noted. `x` stands in for the samples of all splits."""

    def call(model, x=None, **options):
        notes = []
        around = msgspec.structs.replace(bench, note=notes.append)
        if x is not None:
            samples = Samples(np.asarray(x, np.float32), np.zeros(len(x), np.int64))
            around = msgspec.structs.replace(around, split=lambda _: samples)
        return step(**options).apply_module(model, around), notes

    return call


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def macs(model, x):
    return count_module(model, np.asarray(x[:1], np.float32)).macs


def top1(model, bench):
    samples = bench.split("validate")
    with torch.no_grad():
        return evaluate.top1(model(torch.from_numpy(samples.x.copy())).numpy(), samples.y)


def planted(kind, shape, rank):
    """A kernel (out, in, rows, columns) of a known rank in the sense of one method."""
    outputs, inputs, rows, columns = shape
    if kind == "tucker":
        core = seeded(rank, rank, rows, columns)
        return torch.einsum("rskl,or,is->oikl", core, seeded(outputs, rank, seed=1), seeded(inputs, rank, seed=2))
    if kind == "spatial":
        return torch.einsum("irk,orl->oikl", seeded(inputs, rank, rows), seeded(outputs, rank, columns, seed=1))
    vectors = [seeded(length, rank, seed=number) for number, length in enumerate(shape)]
    return torch.einsum("or,ir,kr,lr->oikl", *vectors)


GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 5), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)},
    {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": (1, 3), "padding": (0, 1), "bias": False},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["plain", "strided", "reflected", "flat"])
@pytest.mark.parametrize("method", ["tucker", "cp", "spatial"])
def test_a_convolution_of_that_rank_is_computed_as_before_by_fewer_macs(method, geometry, pressed):
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 14, **geometry)
    with torch.no_grad():
        layer.weight.copy_(planted(method, layer.weight.shape, 2))
    model, x = nn.Sequential(layer).eval(), seeded(2, 12, 15, 13)
    thin, notes = pressed(model, x, method=method, rank=2)
    assert isinstance(thin[0], nn.Sequential)
    assert torch.allclose(thin(x), model(x), atol=2e-3 * float(model(x).detach().abs().max()))
    assert macs(thin, x) < macs(model, x)
    assert notes == [f"in factors: 0 {notes[0].split(' ', 3)[3]}"]
    said = float(notes[0].split("(")[1].split()[0])
    assert said == pytest.approx(macs(thin, x) / macs(model, x), abs=0.006)


def test_the_layers_that_a_method_makes(pressed):
    model, x = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2, padding=1)).eval(), seeded(2, 16, 12, 12)

    def kernels(**options):
        thin, _ = pressed(model, x, **options)
        return [(piece.in_channels, piece.out_channels, piece.kernel_size, piece.groups) for piece in thin[0]]

    assert kernels(method="tucker", rank=[4, 6]) == [
        (16, 4, (1, 1), 1),
        (4, 6, (3, 3), 1),
        (6, 24, (1, 1), 1),
    ]
    assert kernels(method="tucker", rank=[16, 6]) == [(16, 6, (3, 3), 1), (6, 24, (1, 1), 1)]
    assert kernels(method="spatial", rank=5) == [(16, 5, (3, 1), 1), (5, 24, (1, 3), 1)]
    assert kernels(method="cp", rank=5) == [
        (16, 5, (1, 1), 1),
        (5, 5, (3, 1), 5),
        (5, 5, (1, 3), 5),
        (5, 24, (1, 1), 1),
    ]


@pytest.mark.parametrize("method", ["tucker", "cp"])
def test_one_dimensional_convolutions_have_factors_too(method, pressed):
    layer = nn.Conv1d(12, 14, 5, padding=2)
    with torch.no_grad():
        layer.weight.copy_(planted("cp", (14, 12, 5, 1), 2)[..., 0])
    model, x = nn.Sequential(layer).eval(), seeded(2, 12, 40)
    thin, _ = pressed(model, x, method=method, rank=2)
    assert len(thin[0]) == 3
    assert torch.allclose(thin(x), model(x), atol=2e-3 * float(model(x).detach().abs().max()))


def test_dense_layers_are_exact_at_their_rank_and_what_would_not_save_is_named(pressed):
    layer = nn.Linear(20, 30)
    with torch.no_grad():
        layer.weight.copy_(seeded(30, 3) @ seeded(3, 20, seed=1))
    model, x = nn.Sequential(layer).eval(), seeded(4, 20)
    thin, _ = pressed(model, x, rank=3)
    assert [piece.out_features for piece in thin[0]] == [3, 30]
    assert torch.allclose(thin(x), model(x), atol=1e-4)
    thin, notes = pressed(model, x, rank=12)
    assert thin[0].weight.shape == (30, 20)
    assert notes == ["0 is left as it is: svd of rank 12 needs 600 MACs, the layer 600"]


def test_svd_leaves_larger_kernels_and_factorizes_dense_and_pointwise_layers(pressed):
    thin, notes = pressed(compress_zoo.build(), rank=3)
    assert thin.hidden[0].out_features == thin.block.mix[0].out_channels == 3
    assert isinstance(thin.block.conv, nn.Conv2d)
    assert len(notes) == 1


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
    model, x = nn.Sequential(layer).eval(), seeded(2, 16, 8, 8)

    def lost(energy):
        thin, _ = pressed(model, x, method=method, energy=energy)
        return float((kernel_of(thin[0], 3) - layer.weight).square().sum() / layer.weight.square().sum())

    few, many = lost(0.7), lost(0.95)
    assert few <= 0.3 + 1e-4
    assert many <= 0.05 + 1e-4
    assert few > 0.1


def kernel_of(factors, size):
    """The kernel (out, in, size, size) that a sequence of convolutions without bias amounts to."""
    inputs = factors[0].in_channels
    impulses = torch.zeros(inputs, inputs, 2 * size - 1, 2 * size - 1)
    impulses[range(inputs), range(inputs), size - 1, size - 1] = 1
    with torch.no_grad():
        return factors(impulses).flip(2, 3).transpose(0, 1)


def test_auto_takes_the_method_with_the_fewest_macs(pressed):
    original, x = compress_zoo.build(), seeded(2, 1, 12, 12)
    skip = {"types": {"Linear": {"skip": True}}}
    costs = {
        method: macs(pressed(original, x, method=method, energy=0.6, **skip)[0].block.conv, seeded(1, 16, 6, 6))
        for method in ("tucker", "cp", "spatial", "auto")
    }
    assert costs["auto"] == min(costs.values())
    assert len(set(costs.values())) > 1


@pytest.mark.parametrize(("rank", "shape"), [(0, (60, 100)), (1, (100, 60)), (5, (40, 400)), (20, (60, 100))])
def test_evbmf_finds_the_rank_that_was_planted_in_noise(rank, shape):
    chance = np.random.default_rng(rank)
    signal = chance.standard_normal((shape[0], rank)) @ chance.standard_normal((rank, shape[1]))
    values = np.linalg.svd(signal + 0.5 * chance.standard_normal(shape), compute_uv=False)
    assert signal_rank(values, *shape) == rank
    assert signal_rank(1000 * values, *shape) == rank


def test_evbmf_ranks_layers_and_leaves_pure_noise(pressed):
    dense, conv, noise = nn.Linear(64, 80), nn.Conv2d(32, 40, 3, padding=1), nn.Linear(80, 40)
    with torch.no_grad():
        dense.weight.copy_(seeded(80, 4) @ seeded(4, 64, seed=1) + 0.3 * seeded(80, 64, seed=2))
        conv.weight.copy_(planted("tucker", conv.weight.shape, 3) + 0.1 * seeded(40, 32, 3, 3, seed=3))
        noise.weight.copy_(seeded(40, 80, seed=4))
    thin, _ = pressed(nn.Sequential(conv).eval(), seeded(2, 32, 6, 6), method="tucker", evbmf=True)
    assert [piece.out_channels for piece in thin[0]] == [3, 3, 40]
    thin, notes = pressed(nn.Sequential(dense, noise).eval(), seeded(2, 64), evbmf=True)
    assert thin[0][0].out_features == 4
    assert notes[0] == "1 is left as it is: EVBMF finds no signal above the noise"


@pytest.mark.parametrize("budget_of", ["macs", "params"])
def test_a_budget_is_met_over_all_layers_together(budget_of, pressed):
    original, x = compress_zoo.build(), seeded(1, 1, 12, 12)

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
    original, x = compress_zoo.build(), seeded(1, 1, 12, 12)
    names, sizes = {"hidden", "block.mix", "head"}, []
    for max_drop in (0.0, 0.2):
        thin, _ = pressed(original, max_drop=max_drop)
        sizes.append(macs(thin, x))
        for name in names:
            others = {other: {"skip": True} for other in names - {name}}
            alone, _ = pressed(original, max_drop=max_drop, layers=others)
            assert top1(original, bench) - top1(alone, bench) <= max_drop + 1e-9
    assert sizes[1] < sizes[0] < macs(original, x)


def test_ranks_are_rounded_up_to_multiples(pressed):
    plain, _ = pressed(compress_zoo.build(), energy=0.8)
    rounded, _ = pressed(compress_zoo.build(), energy=0.8, round_to=4)
    assert plain.hidden[0].out_features % 4 != 0
    assert rounded.hidden[0].out_features == -(-plain.hidden[0].out_features // 4) * 4


def test_hooi_comes_nearer_than_the_truncated_hosvd(pressed):
    layer = nn.Conv2d(12, 12, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(seeded(12, 12, 3, 3))
    model, x = nn.Sequential(layer).eval(), seeded(2, 12, 8, 8)
    lost = []
    for rounds in (0, 10):
        thin, _ = pressed(model, x, method="tucker", rank=4, hooi_iterations=rounds)
        lost.append(float((kernel_of(thin[0], 3) - layer.weight).norm()))
    assert lost[1] < 0.99 * lost[0]


def test_what_measures_slower_is_left_with_the_ratio(pressed):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.small, self.large = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(128, 2048)
            self.last = nn.Linear(2048, 256)

        def forward(self, x):
            return self.last(self.large(self.small(x).flatten(1)))

    torch.manual_seed(0)
    options = {"rank": 4, "layers": {"small": {"method": "cp", "rank": 16}, "large": {"skip": True}}}
    thin, notes = pressed(Net().eval(), seeded(2, 8, 4, 4), **options)
    assert isinstance(thin.small, nn.Sequential)
    thin, notes = pressed(Net().eval(), seeded(2, 8, 4, 4), measure=True, **options)
    assert isinstance(thin.small, nn.Conv2d)
    assert isinstance(thin.last, nn.Sequential)
    said = [note for note in notes if note.startswith("small is left as it is: cp of rank 16 ran ")]
    assert float(said[0].split(" ran ")[1].split()[0]) >= 1
    assert said[0].endswith("times as long in ONNX Runtime")


def test_factorized_from_the_start_nothing_of_the_training_before_is_left(pressed):
    untrained = compress_zoo.Net().eval()
    options = {"rank": 3, "when": "start", "epochs": 1, "samples": 64}
    results = [pressed(model, **options)[0] for model in (compress_zoo.build(), untrained)]
    assert structure.digest(results[0]) == structure.digest(results[1])
    after, _ = pressed(compress_zoo.build(), rank=3, epochs=1, samples=64)
    assert structure.digest(after) != structure.digest(results[0])


def test_factorized_from_the_start_it_learns(pressed, bench):
    thin, _ = pressed(compress_zoo.build(), rank=4, when="start", epochs=6, lr=5e-3)
    assert top1(thin, bench) > 0.7


@pytest.mark.parametrize(("method", "layer"), [("svd", "hidden"), ("tucker", "block.conv"), ("spatial", "block.conv")])
def test_a_trace_norm_penalty_draws_energy_into_fewer_ranks(method, layer, pressed, bench):
    options = {"method": method, "energy": 0.8, "lr": 3e-3, "when": "regularised", "regularise_epochs": 6}
    skip = {other: {"skip": True} for other in {"stem", "block.mix", "hidden", "head"} - {layer}}

    def left(strength):
        thin, notes = pressed(compress_zoo.build(), strength=strength, layers=skip, **options)
        assert top1(thin, bench) > 0.95
        return float(notes[-1].rpartition("(")[2].split()[0])

    assert left(1.0) < 0.75 * left(1e-6)


def test_fine_tuning_wins_back_accuracy(pressed, bench):
    training = ({}, {"lr": 5e-3, "epochs": 4})
    scores = [top1(pressed(compress_zoo.build(), method="auto", budget=0.05, **some)[0], bench) for some in training]
    assert scores[1] > scores[0] + 0.3


class Awkward(nn.Module):
    """Layers that cannot be factorized, each for another reason, and a Transformer layer."""

    def __init__(self, *, tied):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.depthwise = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.transformer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        if tied:
            self.second.weight = self.first.weight
        self.unused = nn.Linear(16, 16)

    def forward(self, x):
        x = self.depthwise(self.embed(x).transpose(1, 2)).transpose(1, 2)
        return self.second(self.first(self.transformer(x).mean(1)))


def test_layers_that_cannot_be_factorized_are_left_with_the_reason(pressed):
    _, notes = pressed(Awkward(tied=True).eval(), seeded(2, 5, 8), method="auto", energy=0.3)
    reasons = dict(note.split(" is left as it is: ") for note in notes if " is left as it is: " in note)
    assert reasons == {
        "depthwise": "a convolution of 16 groups has few channels in each",
        "transformer.self_attn.out_proj": "its class NonDynamicallyQuantizableLinear is more than a plain layer, "
        "and its owner may read the weight itself",
        "first": "it shares its weight with second",
        "second": "it shares its weight with first",
        "unused": "the model reads its weight without calling it, or does not use it",
    }


def test_a_transformer_runs_with_its_feed_forward_layers_in_factors(pressed):
    original, x = Awkward(tied=False).eval(), seeded(2, 5, 8)
    thin, _ = pressed(original, x, energy=0.3)
    assert len(thin.transformer.linear1) == len(thin.transformer.linear2) == 2
    again = structure.rebuild(original, structure.describe(thin), structure.tensors(thin))
    assert structure.digest(again) == structure.digest(thin)
    with torch.no_grad():
        assert torch.equal(again(x), thin(x))


def test_a_model_whose_code_reads_a_layer_is_refused_with_a_way_out(pressed):
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(16, 16)

        def forward(self, x):
            return self.hidden(x) / self.hidden.in_features

    with pytest.raises(StepFailed, match=r"in_features.*; leave the layer that its code reads as it is: layers\.NAME"):
        pressed(Reading().eval(), seeded(2, 16), rank=2)


def test_a_model_without_a_layer_for_the_method_is_refused(pressed):
    with pytest.raises(StepFailed, match="no layer that method 'svd' can take apart"):
        pressed(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), seeded(2, 3, 5, 5), rank=1)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_every_method_runs_in_the_real_runtime(format_, pressed, bench):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tucker, self.cp = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, stride=2, padding=1)
            self.spatial, self.dense = nn.Conv2d(12, 12, 3), nn.Linear(12 * 16, 10)

        def forward(self, x):
            x = torch.relu(self.spatial(torch.relu(self.cp(torch.relu(self.tucker(x))))))
            return self.dense(x.flatten(1))

    torch.manual_seed(0)
    layers = {name: {"method": name, "rank": 3} for name in ("tucker", "cp", "spatial")}
    thin, _ = pressed(Net().eval(), rank=4, layers=layers)
    assert [len(getattr(thin, name)) for name in ("tucker", "cp", "spatial", "dense")] == [2, 4, 2, 2]
    x = bench.calibration(4)
    content = exporters.get(format_).export(thin, x)
    got = np.concatenate([outputs[0] for outputs in evaluate.predict(format_, content, x)])
    with torch.no_grad():
        assert np.allclose(got, thin(torch.from_numpy(x.copy())).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, r"energy: expected either energy \(0 to 1\), rank, evbmf, budget or max_drop"),
        ({"energy": 0.5, "budget": 0.5}, "energy: expected either"),
        ({"energy": 1.5}, "energy: "),
        ({"rank": 0}, "rank: "),
        ({"rank": [2, 3]}, r"rank: \[inputs, outputs\] is for method tucker; svd has one rank"),
        ({"rank": 2, "method": "auto"}, "rank: auto compares methods at the same energy"),
        ({"evbmf": True, "method": "cp"}, "evbmf: it finds ranks of matrices"),
        ({"budget": 1.0}, "budget: "),
        ({"energy": 0.5, "budget_of": "params"}, "budget_of: "),
        ({"rank": 2, "round_to": 8}, "round_to: "),
        ({"rank": 2, "when": "start"}, "epochs: "),
        ({"rank": 2, "lr": 0.1}, "lr: does nothing with epochs = 0"),
        ({"energy": 0.5, "hooi_iterations": 3}, "hooi_iterations: they are for method tucker"),
        ({"rank": 2, "when": "regularised"}, "strength: "),
        ({"rank": 2, "strength": 1.0}, "strength: "),
        ({"energy": 0.5, "layers": {"a": {"rank": [1, 2]}}}, r"layers\.'a'\.rank: \[inputs, outputs\]"),
        ({"energy": 0.5, "types": {"Linear": {"rank": 1, "energy": 0.5}}}, r"types\.Linear\.energy: expected at most"),
        ({"energy": 0.5, "layers": {"a": {"evbmf": False}}}, r"layers\.'a'\.evbmf: expected true"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, line):
    with pytest.raises(UsageError, match=line):
        step(**options)
