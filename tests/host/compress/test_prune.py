from __future__ import annotations

import functools

import msgspec
import numpy as np
import prune_zoo as zoo
import pytest
import torch
from edgepress_host import evaluate, exporters, technique
from edgepress_host.press import structure
from edgepress_host.press.data import Data, Samples
from edgepress_host.press.strict import convert
from edgepress_host.press.training import Step
from edgepress_host.technique import StepFailed, Workbench
from edgepress_protocol.errors import UsageError
from torch import nn

PRUNE = technique.found()["prune"]
MATRICES = (nn.Linear, nn.Conv1d)
POLYNOMIAL = {
    "kind": "magnitude",
    "ratio": 0.9,
    "schedule": "polynomial",
    "epochs": 4,
    "frequency": 2,
    "initial_sparsity": 0.3,
    "lr": 5e-3,
}


def step(**options):
    made = convert(options, PRUNE)
    made.check()
    return made


@pytest.fixture(scope="module")
def coupled():
    return zoo.trained(zoo.seeded(zoo.Coupled))


@pytest.fixture(scope="module")
def encodes():
    return zoo.trained(zoo.seeded(zoo.Encodes))


@pytest.fixture(scope="module")
def stack():
    return zoo.trained(zoo.seeded(zoo.Stack))


@pytest.fixture
def notes():
    return []


def bench_of(original, note):
    data = Data(zoo.load, key="prune_zoo:load")
    return Workbench(
        original=lambda: original,
        split=data.split,
        seed=0,
        say=lambda _: None,
        metric=evaluate.top1,
        augment=None,
        note=note,
    )


@pytest.fixture
def bench(notes, coupled):
    return bench_of(coupled, notes.append)


@pytest.fixture(scope="module")
def gradual(coupled):
    """The outcome that those of other options are told from."""
    return step(**POLYNOMIAL).apply_module(coupled, bench_of(coupled, lambda _: None))


def zeros(layer):
    return float((layer.weight == 0).float().mean())


def sparsity(model):
    weights = [layer.weight for layer in model.modules() if isinstance(layer, MATRICES)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def inputs(count=16):
    return torch.from_numpy(zoo.load("validate")[0][:count])


def can_be_kept(original, pruned):
    again = structure.rebuild(original, structure.describe(pruned), structure.tensors(pruned))
    return structure.digest(again) == structure.digest(pruned)


class TestSingleWeights:
    def test_a_ratio_holds_in_each_layer_or_over_the_model(self, coupled, bench):
        each = step(kind="magnitude", ratio=0.75).apply_module(coupled, bench)
        assert all(zeros(layer) == pytest.approx(0.75, abs=0.01) for layer in (each.stem, each.middle, each.hidden))
        whole = step(kind="magnitude", ratio=0.75, scope="global").apply_module(coupled, bench)
        assert sparsity(whole) == pytest.approx(0.75, abs=0.002)
        assert abs(zeros(whole.stem) - 0.75) > 0.05

    def test_what_goes_is_smaller_than_what_stays(self, coupled, bench):
        pruned = step(kind="magnitude", ratio=0.75).apply_module(coupled, bench).hidden.weight
        old = coupled.hidden.weight.abs()
        assert old[pruned == 0].max() <= old[pruned != 0].min()

    def test_a_layers_own_ratio_holds_in_a_global_scope(self, coupled, bench):
        made = step(kind="magnitude", ratio=0.75, scope="global", layers={"stem": {"ratio": 0.25}})
        pruned = made.apply_module(coupled, bench)
        assert zeros(pruned.stem) == pytest.approx(0.25, abs=0.01)

    def test_a_threshold_takes_what_is_at_or_below_it(self, coupled, bench):
        made = step(kind="magnitude", threshold=0.1, layers={"middle": {"threshold": 0.01}, "last": {"ratio": 0.5}})
        pruned = made.apply_module(coupled, bench)
        assert torch.equal(pruned.hidden.weight != 0, coupled.hidden.weight.abs() > 0.1)
        assert torch.equal(pruned.middle.weight != 0, coupled.middle.weight.abs() > 0.01)
        assert zeros(pruned.last) == pytest.approx(0.5, abs=0.01)

    def test_lamp_leaves_more_in_the_layers_that_have_less(self, coupled, bench):
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

    def test_two_of_every_four_inputs_stay_in_the_exported_file(self, coupled, bench, notes):
        pruned = step(kind="magnitude", pattern="2:4", epochs=1).apply_module(coupled, bench)
        assert notes == ["left as they are, with no multiple of 4 inputs: stem.weight, deep.weight"]
        kept = (pruned.middle.weight != 0).movedim(1, -1).reshape(-1, 4).sum(dim=1)
        assert kept.tolist() == [2] * len(kept)
        stored = {
            w.shape: w for w in exporters.get("onnx").weights(exporters.get("onnx").export(pruned, inputs(2).numpy()))
        }
        dense = stored.get((24, 128)) or stored[(128, 24)]
        assert dense.nonzero == dense.elements // 2
        other = step(kind="magnitude", pattern="1:4").apply_module(coupled, bench)
        assert zeros(other.hidden) == 0.75

    @pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
    def test_weights_of_recurrent_layers_go_and_stay_gone(self, kind, bench):
        original = zoo.seeded(zoo.Recurs, kind)
        pruned = step(kind="magnitude", ratio=0.75, epochs=1).apply_module(original, bench)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            assert float((getattr(pruned.cell, name) == 0).float().mean()) == pytest.approx(0.75, abs=0.01)
        assert can_be_kept(original, pruned)

    def test_weights_of_attention_go(self, encodes, bench):
        pruned = step(kind="magnitude", ratio=0.75).apply_module(encodes, bench)
        attention = pruned.encoder.layers[0].self_attn
        assert float((attention.in_proj_weight == 0).float().mean()) == pytest.approx(0.75, abs=0.01)

    def test_layers_of_other_kinds_are_named_and_a_graph_that_cannot_be_traced_is_one_line(self, bench, notes):
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

    def test_a_model_without_weights_is_refused(self, bench):
        with pytest.raises(StepFailed, match="no layer with weights to prune is left"):
            step(kind="magnitude", skip=True).apply_module(zoo.seeded(zoo.Stack), bench)
        with pytest.raises(StepFailed, match="every layer has no multiple of 7 inputs: embed"):
            step(kind="magnitude", pattern="1:7").apply_module(zoo.seeded(zoo.Stack), bench)


class TestSchedules:
    @pytest.mark.parametrize("schedule", ["constant", "linear", "polynomial"])
    def test_the_ratio_is_there_after_training_and_no_mask_is_left(self, schedule, coupled, bench):
        options = {"kind": "magnitude", "ratio": 0.9, "schedule": schedule, "epochs": 2, "frequency": 2}
        pruned = step(**options).apply_module(coupled, bench)
        assert zeros(pruned.hidden) == pytest.approx(0.9, abs=0.01)
        assert pruned.state_dict().keys() == coupled.state_dict().keys()
        assert not torch.equal(pruned.head.bias, coupled.head.bias)

    @pytest.mark.parametrize(
        "change",
        [
            {"initial_sparsity": 0.6},
            {"begin": 0.4},
            {"end": 0.4},
            {"frequency": 5},
            {"power": 1.0},
            {"teacher": True},
            {"schedule": "constant", "initial_sparsity": 0.0},
            {"schedule": "linear"},
        ],
        ids=str,
    )
    def test_each_option_changes_what_is_left(self, change, coupled, bench, gradual):
        other = step(**POLYNOMIAL | change).apply_module(coupled, bench)
        assert not torch.equal(other.hidden.weight != 0, gradual.hidden.weight != 0)
        assert zeros(other.hidden) == pytest.approx(0.9, abs=0.01)

    def test_the_ramp_is_the_papers(self):
        from edgepress_host.techniques.prune.gradual import Ramp

        ramp = Ramp(initial=0.2, begin=0.1, end=0.6, every=10, power=3)
        due = [number for number in range(200) if ramp.is_due(number, 200)]
        assert due == list(range(20, 121, 10))
        found = [ramp.sparsity(0.9, number, 200) for number in due]
        assert found == pytest.approx([0.9 + (0.2 - 0.9) * (1 - (number - 20) / 100) ** 3 for number in due])
        line = [ramp._replace(power=1).sparsity(0.9, number, 200) for number in (20, 70, 120, 199)]
        assert line == pytest.approx([0.2, 0.55, 0.9, 0.9])
        assert ramp._replace(power=0).sparsity(0.9, 20, 200) == 0.9
        assert [number for number in range(3) if Ramp(0.0, 0.5, 1.0, 100, 3).is_due(number, 3)] == [1, 2]

    def test_a_weight_that_is_gone_stays_gone_however_much_the_optimiser_wants_it(self):
        from edgepress_host.techniques.prune.gradual import Gradual, Ramp
        from edgepress_host.techniques.prune.plan import Wanted
        from edgepress_host.techniques.prune.weights import Rule, WeightCut

        layer = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[-0.1, 0.2, 0.3, 0.4]]))
        cut = WeightCut({"l": layer}, {"l": Wanted(0.5, None, False)}, Rule(False, False, None), lambda _: None)
        after = Gradual(cut, Ramp(0.0, 0.0, 1.0, 1, 0.0))
        for number in range(4):
            with torch.no_grad():
                layer.weight[0, 0] -= 0.05 if number == 0 else 9.0
            after(Step(torch.zeros(1), torch.zeros(1), torch.zeros(1), number, 4))
        torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.0, 0.0, 0.3, 0.4]]))
        assert not torch.signbit(layer.weight).any()

    def test_rounds_take_the_same_part_of_what_is_left_and_train_after_each(self, coupled, bench):
        said = []
        watched = msgspec.structs.replace(bench, say=said.append)
        options = {"kind": "magnitude", "ratio": 0.875, "epochs": 1, "lr": 5e-3}
        pruned = step(**options, schedule="iterative", iterations=3).apply_module(coupled, watched)
        assert zeros(pruned.hidden) == pytest.approx(0.875, abs=0.01)
        assert [line for line in said if "round" in line] == [f"pruning (magnitude, round {n} of 3)" for n in (1, 2, 3)]
        once = step(**options).apply_module(coupled, bench)
        assert not torch.equal(once.hidden.weight != 0, pruned.hidden.weight != 0)


class TestTeacher:
    @pytest.fixture
    def tuned(self, coupled, bench):
        def call(**options):
            common = {"kind": "magnitude", "ratio": 0.9, "epochs": 4, "lr": 5e-3}
            return step(**common | options).apply_module(coupled, options.pop("bench", bench))

        return call

    def test_a_taught_model_answers_more_like_the_original(self, tuned, coupled):
        def far(model):
            with torch.no_grad():
                return float((model(inputs(96)).softmax(1) - coupled(inputs(96)).softmax(1)).abs().mean())

        assert far(tuned(teacher=True, alpha=1.0)) < far(tuned())

    def test_a_teacher_of_the_users_own_teaches_in_its_place(self, tuned, coupled):
        wise, original = tuned(teacher="prune_zoo:another"), tuned(teacher=True)
        assert structure.digest(wise) != structure.digest(original)
        named = [step(kind="magnitude", epochs=1, teacher=some).extra_key() for some in ("prune_zoo:another", True)]
        assert named[0]
        assert not named[1]

    def test_a_teacher_with_other_outputs_is_refused_before_training(self, tuned):
        with pytest.raises(StepFailed, match=r"teacher: prune_zoo:wider gives outputs of shape .* the model"):
            tuned(teacher="prune_zoo:wider")

    @pytest.mark.parametrize("change", [{"alpha": 0.2}, {"temperature": 1.0}], ids=str)
    def test_temperature_and_mix_change_what_is_learned(self, change, tuned):
        assert structure.digest(tuned(teacher=True, **change)) != structure.digest(tuned(teacher=True))

    def test_answers_to_augmented_inputs_are_the_teachers_own(self, coupled):
        from edgepress_host.press.soft import softened, taught

        samples = Samples(*zoo.load("train"))
        x, indices = inputs(8), torch.arange(8)
        at = Step(x * 2, torch.from_numpy(samples.y[:8]), indices, 0, 1)
        student = torch.zeros(8, zoo.CLASSES)
        losses = [
            float(taught(coupled, samples, augmented=augmented, temperature=2.0, alpha=1.0)(student, at))
            for augmented in (True, False)
        ]
        with torch.no_grad():
            right = [coupled(x * 2), coupled(torch.from_numpy(samples.x[:8].copy()))]
        assert losses == pytest.approx([float(softened(student, answers, 2.0)) for answers in right], rel=1e-4)

    def test_values_are_taught_by_squared_error(self, coupled):
        from edgepress_host.press.soft import taught

        x = zoo.load("train")[0]
        with torch.no_grad():
            answers = coupled(torch.from_numpy(x))
        labels = np.zeros(answers.shape, np.float32)
        loss = taught(coupled, Samples(x, labels), augmented=False, temperature=4.0, alpha=0.5)
        at = Step(torch.from_numpy(x[:8]), torch.from_numpy(labels[:8]), torch.arange(8), 0, 1)
        want = 0.5 * answers[:8].square().mean()
        assert float(loss(torch.zeros(8, zoo.CLASSES), at)) == pytest.approx(float(want), rel=1e-4)


class TestChannels:
    @pytest.mark.parametrize("importance", ["l1", "l2", "bn_scale", "lamp", "fpgm", "taylor"])
    @pytest.mark.parametrize("scope", ["layer", "global"])
    def test_coupled_layers_lose_the_same_channels_and_the_model_can_be_kept(self, importance, scope, coupled, bench):
        pruned = step(ratio=0.5, importance=importance, scope=scope, epochs=1).apply_module(coupled, bench)
        width = pruned.stem.out_channels
        assert width < 16
        assert width % 4 == 0
        assert {pruned.norm.num_features, pruned.deep.groups, pruned.middle.in_channels} == {width}
        assert pruned.last.out_channels == width
        assert pruned.hidden.in_features == width * zoo.WIDTH
        assert pruned.head.out_features == zoo.CLASSES
        assert can_be_kept(coupled, pruned)

    def test_importances_choose_differently(self, coupled, bench):
        chosen = {
            importance: structure.digest(
                step(ratio=0.5, importance=importance, scope="global").apply_module(coupled, bench)
            )
            for importance in ("l1", "l2", "bn_scale", "lamp", "fpgm", "taylor")
        }
        assert len(set(chosen.values())) == len(chosen)

    def test_the_scale_of_batch_normalisation_decides(self, coupled, bench, notes):
        original = structure.rebuild(coupled, structure.describe(coupled), structure.tensors(coupled))
        with torch.no_grad():
            original.norm.weight.copy_(torch.arange(1.0, 17.0))
        pruned = step(ratio=0.5, importance="bn_scale").apply_module(original, bench)
        assert pruned.norm.weight.tolist() == list(range(9, 17))
        assert notes == ["kept all channels: middle, hidden"]
        with pytest.raises(StepFailed, match="bn_scale: this model has no batch normalisation"):
            step(ratio=0.5, importance="bn_scale").apply_module(zoo.seeded(zoo.Stack), bench)

    def test_the_geometric_median_goes_first_and_not_the_smallest(self, bench):
        model = zoo.seeded(zoo.Stack)
        with torch.no_grad():
            # On a line: the ones in the middle are near to all others, the small ones are far from most.
            model.embed.weight.copy_(torch.arange(1.0, 17.0)[:, None].repeat(1, 8))
            model.head.weight.fill_(1.0)
        line = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
        with torch.no_grad():
            line[1].weight.copy_(torch.arange(1.0, 17.0)[:, None].repeat(1, 48))
        pruned = step(ratio=0.5, importance="fpgm").apply_module(line, bench)
        assert pruned[1].weight[:, 0].tolist() == [1, 2, 3, 4, 13, 14, 15, 16]
        small = step(ratio=0.5, importance="l2").apply_module(line, bench)
        assert small[1].weight[:, 0].tolist() == list(range(9, 17))

    def test_by_taylor_what_changes_the_loss_least_goes_however_large(self, bench):
        line = nn.Sequential(
            nn.Flatten(), zoo.seeded(nn.Linear, 48, 16), nn.ReLU(), zoo.seeded(nn.Linear, 16, 3)
        ).eval()
        with torch.no_grad():
            # Large, but all three scores get the same of it: the loss does not go by it.
            line[1].weight[:8] *= 3
            line[3].weight[:, :8] = 3.0
        pruned = step(ratio=0.5, importance="taylor").apply_module(line, bench)
        assert torch.equal(pruned[1].weight, line[1].weight[8:])
        large = step(ratio=0.5, importance="l1").apply_module(line, bench)
        assert torch.equal(large[1].weight, line[1].weight[:8])

    def test_widths_are_multiples_of_round_to(self, coupled, bench):
        for multiple, width in ((1, 17), (8, 16), (16, 16)):
            pruned = step(ratio=0.45, round_to=multiple).apply_module(coupled, bench)
            assert pruned.middle.out_channels == width

    def test_rounds_end_at_the_width_that_one_step_reaches(self, coupled, bench):
        rounds = step(ratio=0.75, schedule="iterative", iterations=2, epochs=1).apply_module(coupled, bench)
        once = step(ratio=0.75, epochs=1).apply_module(coupled, bench)
        assert (rounds.middle.out_channels, rounds.hidden.out_features) == (8, 4)
        assert (once.middle.out_channels, once.hidden.out_features) == (8, 4)
        assert structure.digest(rounds) != structure.digest(once)

    @pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
    def test_a_recurrent_layer_is_refused_by_name_and_what_feeds_it_keeps_its_width(self, kind, bench, notes):
        original = zoo.seeded(zoo.Recurs, kind)
        name = kind.__name__
        with pytest.raises(StepFailed, match=rf"^cell: a layer of type {name} cannot lose channels; skip it"):
            step(ratio=0.5).apply_module(original, bench)
        pruned = step(ratio=0.5, layers={"cell": {"skip": True}}).apply_module(original, bench)
        assert (pruned.embed.out_features, pruned.wide.out_features) == (4, 8)
        assert (pruned.deep.out_features, pruned.cell.hidden_size, pruned.wide.in_features) == (12, 16, 16)
        assert notes == ["kept all channels: deep"]

    def test_what_attention_reads_keeps_its_width(self, encodes, bench, notes):
        pruned = step(ratio=0.5).apply_module(encodes, bench)
        assert [layer.linear1.out_features for layer in pruned.encoder.layers] == [16, 16]
        assert pruned.embed.out_features == 16
        assert "embed" in notes[0]

    def test_every_output_keeps_its_width(self, bench):
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


class TestHeads:
    @pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
    def test_heads_of_torchs_own_transformer_go(self, importance, encodes, bench):
        pruned = step(kind="heads", ratio=0.5, importance=importance).apply_module(encodes, bench)
        assert [layer.self_attn.num_heads for layer in pruned.encoder.layers] == [2, 2]
        assert pruned.encoder.layers[0].self_attn.q_proj_weight.shape == (8, 16)
        assert can_be_kept(encodes, pruned)

    def test_torchs_attention_computes_the_same_in_the_form_that_can_lose_heads(self):
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
    def test_heads_of_attention_by_hand_go_and_the_others_compute_as_before(self, form, bench):
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

    def test_code_that_goes_by_the_old_width_is_refused_by_name(self, bench):
        derived = zoo.seeded(zoo.Reads, functools.partial(zoo.Attends, derive=True))
        with pytest.raises(StepFailed, match=r"^attention: its own code goes by the width that it was made with"):
            step(kind="heads", ratio=0.5).apply_module(derived, bench)

    def test_over_the_model_the_layer_that_says_less_loses_more(self, bench):
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

    def test_an_attentions_own_ratio_and_rounds(self, encodes, bench):
        options = {"ratio": 0.75, "layers": {"encoder.layers.0*": {"ratio": 0.25}}}
        made = step(kind="heads", schedule="iterative", iterations=2, epochs=1, **options)
        pruned = made.apply_module(encodes, bench)
        assert [layer.self_attn.num_heads for layer in pruned.encoder.layers] == [3, 1]

    def test_what_cannot_be_done_is_one_line(self, bench, encodes):
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


class TestHiddenUnits:
    @pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
    def test_the_units_that_say_nothing_go_and_nothing_changes(self, importance, bench):
        original = zoo.seeded(zoo.Reads, zoo.Attends)
        with torch.no_grad():
            original.feed[0].weight[::2] = 0
            original.feed[0].bias[::2] = 0
            original.feed[2].weight[:, ::2] = 0
        pruned = step(kind="hidden", ratio=0.5, importance=importance).apply_module(original, bench)
        assert pruned.feed[0].out_features == pruned.feed[2].in_features == 8
        torch.testing.assert_close(pruned(inputs()), original(inputs()))

    def test_widths_are_multiples_of_round_to_and_a_layer_may_have_its_own_ratio(self, encodes, bench):
        layers = {"encoder.layers.1.linear1": {"ratio": 0.2}}
        pruned = step(kind="hidden", ratio=0.6, round_to=8, layers=layers).apply_module(encodes, bench)
        assert [layer.linear1.out_features for layer in pruned.encoder.layers] == [8, 24]
        fine = step(kind="hidden", ratio=0.6, round_to=1, scope="global").apply_module(encodes, bench)
        assert sum(layer.linear1.out_features for layer in fine.encoder.layers) == 64 - 38


class TestBlocks:
    def test_the_block_that_adds_nothing_goes(self, stack, bench, notes):
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

    def test_the_drop_on_validate_says_how_many_go(self, stack, bench):
        samples = Samples(*zoo.load("validate"))

        def accuracy(model):
            with torch.no_grad():
                return evaluate.top1(model(torch.from_numpy(samples.x)).numpy(), samples.y)

        few, all_ = (step(kind="block", max_drop=drop).apply_module(stack, bench) for drop in (0.02, 1.0))
        assert accuracy(few) >= accuracy(stack) - 0.02
        left = [sum(isinstance(layer, nn.Linear) for layer in model.modules()) for model in (few, all_)]
        assert left[1] < left[0]

    def test_a_layer_of_torchs_own_transformer_goes(self, encodes, bench, notes):
        pruned = step(kind="block", count=1, layers={"encoder.layers.1": {"skip": True}}).apply_module(encodes, bench)
        assert notes == ["taken out: encoder.layers.0"]
        kept, right = pruned.encoder.layers, encodes.encoder.layers[1]
        assert torch.equal(kept[0].linear1.weight, right.linear1.weight)
        assert (len(kept), pruned.encoder.num_layers) == (1, 1)
        assert can_be_kept(encodes, pruned)

    def test_too_many_are_asked_for(self, encodes, bench, notes):
        pruned = step(kind="block", count=5).apply_module(encodes, bench)
        assert len(pruned.encoder.layers) == 1
        assert notes[0] == "only 1 of 5 blocks could go"

    def test_rounds_train_between_blocks(self, stack, bench):
        options = {"kind": "block", "count": 2, "epochs": 1, "layers": {"blocks.?.*": {"skip": True}}}
        rounds = step(**options, schedule="iterative", iterations=2).apply_module(stack, bench)
        assert sum(isinstance(block, nn.Identity) for block in rounds.blocks) == 2
        assert structure.digest(rounds) != structure.digest(step(**options).apply_module(stack, bench))

    def test_what_cannot_be_done_is_one_line(self, stack, bench):
        with pytest.raises(StepFailed, match="no layer or block gives back the shape of its input"):
            step(kind="block", count=1).apply_module(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), bench)
        # The first model that is scored is the one as it came.
        scores = iter([1.0])
        spoiled = msgspec.structs.replace(bench, metric=lambda *_: next(scores, 0.5))
        with pytest.raises(StepFailed, match=r"no block can go within max_drop = 0\.0"):
            step(kind="block", max_drop=0.0).apply_module(stack, spoiled)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
def test_a_transformer_without_a_layer_heads_and_hidden_units_runs_in_both_runtimes(format_, encodes, bench):
    model = encodes
    for options in ({"kind": "block", "count": 1}, {"kind": "heads", "ratio": 0.5}, {"kind": "hidden", "ratio": 0.5}):
        model = step(**options).apply_module(model, bench)
    x = zoo.load("validate")[0][:4]
    content = exporters.get(format_).export(model, x[:2])
    got = np.concatenate([outputs[0] for outputs in evaluate.predict(format_, content, x)])
    with torch.no_grad():
        np.testing.assert_allclose(got, model(torch.from_numpy(x)).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"ratio": 1.0}, "ratio: expected at least 0 and less than 1, got 1.0"),
        ({"layers": {"a": {"ratio": -0.1}}}, "ratio: expected at least 0 and less than 1, got -0.1"),
        ({"threshold": 0.1}, "threshold: belongs to kind magnitude, and this is kind channel"),
        ({"kind": "block", "count": 1, "ratio": 0.5}, "ratio: belongs to kind channel, magnitude, heads or hidden"),
        (
            {"kind": "magnitude", "round_to": 8},
            "round_to: belongs to kind channel or hidden, and this is kind magnitude",
        ),
        ({"kind": "magnitude", "importance": "fpgm"}, "importance: kind magnitude takes l2 or lamp, got fpgm"),
        ({"kind": "heads", "importance": "bn_scale"}, "importance: kind heads takes l1, l2 or taylor, got bn_scale"),
        ({"kind": "magnitude", "importance": "lamp"}, "importance: lamp compares layers"),
        (
            {"kind": "magnitude", "ratio": 0.5, "threshold": 0.1},
            "threshold: expected one of ratio, threshold and pattern",
        ),
        ({"kind": "magnitude", "pattern": "4:2"}, "pattern: expected N:M with N less than M, such as 2:4, got '4:2'"),
        ({"kind": "magnitude", "pattern": "half"}, "pattern: expected N:M"),
        ({"kind": "magnitude", "pattern": "2:4", "scope": "global"}, "pattern: ranks neighbours within a layer"),
        (
            {"kind": "magnitude", "pattern": "2:4", "layers": {"a": {"ratio": 0.1}}},
            "layers.a.ratio: does nothing with a",
        ),
        ({"kind": "block", "count": 1, "types": {"A": {"ratio": 0.1}}}, "types.A.ratio: does nothing with kind block"),
        ({"kind": "magnitude", "threshold": 0.1, "scope": "global"}, "threshold: is the same for all layers"),
        (
            {"kind": "magnitude", "layers": {"a": {"ratio": 0.1, "threshold": 0.1}}},
            "layers.a: expected ratio or thresh",
        ),
        ({"kind": "block"}, "count: kind block needs count, max_drop, or both"),
        ({"schedule": "iterative"}, "schedule: iterative prunes between or during epochs of training; set epochs"),
        (
            {"schedule": "linear", "epochs": 1},
            "schedule: linear belongs to kind magnitude; kind channel takes one_shot",
        ),
        ({"iterations": 4}, "iterations: belongs to schedule iterative, and this one is one_shot"),
        (
            {"kind": "magnitude", "schedule": "linear", "epochs": 1, "power": 2.0},
            "power: belongs to schedule polynomial",
        ),
        (
            {"kind": "magnitude", "schedule": "constant", "epochs": 1, "initial_sparsity": 0.1},
            "initial_sparsity: belongs",
        ),
        (
            {"kind": "magnitude", "schedule": "linear", "epochs": 1, "begin": 0.9},
            r"begin: expected less than end \(0.75\)",
        ),
        (
            {"kind": "magnitude", "schedule": "linear", "epochs": 1, "pattern": "2:4"},
            "pattern: has no steps in between",
        ),
        (
            {"kind": "block", "max_drop": 0.1, "schedule": "iterative", "epochs": 1},
            "schedule: iterative takes out a part",
        ),
        ({"teacher": True}, "teacher: it teaches while the step trains; set epochs"),
        ({"epochs": 1, "alpha": 0.5}, "alpha: it is the teacher's"),
        (
            {"kind": "magnitude", "ratio": 0.5, "schedule": "linear", "epochs": 1, "initial_sparsity": 0.6},
            r"initial_sparsity: expected at most the ratio \(0.5\), got 0.6",
        ),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_one_line(options, line):
    with pytest.raises(UsageError, match=rf"^{line}"):
        step(**options)


def test_an_order_that_would_undo_zeros_or_shared_values_can_be_told():
    assert step(kind="magnitude").makes() == {"zeros"}
    assert step().makes() == frozenset()
    assert step(kind="magnitude", epochs=1).breaks() == {"shared", "grid"}
    assert step().breaks() == {"grid", "pattern"}
