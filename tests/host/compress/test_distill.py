from __future__ import annotations

import compress_zoo
import distill_zoo
import msgspec
import numpy as np
import pytest
import torch
from compress_recipes import HEAD, one
from edgepress_host.press import structure
from edgepress_host.press.data import Data
from edgepress_host.press.strict import convert
from edgepress_host.press.training import Diverged
from edgepress_host.recipe import parse
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.distill import Distill, exits, lesson, losses
from edgepress_protocol.errors import UsageError
from torch import nn
from torch.nn import functional

SHORT = {"student": "compress_zoo:student", "samples": 256, "epochs": 3, "lr": 3e-3, "batch": 16}


def step_of(**options):
    step = convert(options, Distill)
    step.check()
    return step


def distilled(bench, model=None, **options):
    return step_of(**options).apply_module(compress_zoo.build() if model is None else model, bench)


def noting(bench, **changes):
    notes = []
    return msgspec.structs.replace(bench, note=notes.append, **changes), notes


@pytest.fixture(scope="module")
def held_out(bench):
    return torch.from_numpy(bench.split("validate").x.copy())


@pytest.fixture(scope="module")
def alone(bench):
    """A student that hardly hears of the teacher: what the parts are measured against."""
    return distilled(bench, **SHORT, alpha=1e-6)


@pytest.fixture(scope="module")
def values(bench):
    """Labels of three values each, and a teacher of values."""
    data = Data(distill_zoo.load_values, key="distill_zoo:load_values")
    return msgspec.structs.replace(bench, split=data.split, original=distill_zoo.line)


def answers(model, x):
    with torch.no_grad():
        return model.eval()(x)


def features(model, layer, x):
    found = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _layer, _inputs, output: found.append(output))
    answers(model, x)
    handle.remove()
    return found[0].double()


def softly_apart(student, x):
    own, teacher = (answers(model, x).softmax(1) for model in (student, compress_zoo.build()))
    return float((teacher * (teacher / own).log()).sum(1).mean())


def maps_apart(student, x):
    own, teacher = (features(model, "block", x).pow(2).sum(1).flatten(1) for model in (student, compress_zoo.build()))
    return float((own / own.norm(dim=1, keepdim=True) - teacher / teacher.norm(dim=1, keepdim=True)).norm(dim=1).mean())


def distances_apart(student, x):
    own, teacher = (torch.pdist(features(model, "hidden", x)) for model in (student, compress_zoo.build()))
    return float((own / own.mean() - teacher / teacher.mean()).abs().mean())


def angles_apart(student, x):
    rows = []
    for model in (student, compress_zoo.build()):
        found = features(model, "hidden", x[:24])
        one, middle, other = found[:, None, None], found[None, :, None], found[None, None]
        rows.append(functional.cosine_similarity(one - middle, other - middle, dim=-1))
    return float((rows[0] - rows[1]).abs().mean())


def hidden_apart(student, x):
    own, teacher = (features(model, "hidden", x) for model in (student, compress_zoo.build()))
    return float((own - teacher).square().mean())


@pytest.mark.parametrize(
    ("options", "apart"),
    [
        ({"alpha": 0.9, "temperature": 2.0}, softly_apart),
        ({"alpha": 0, "hint": 3.0}, hidden_apart),
        ({"alpha": 0, "attention": 3.0, "features": {"block": "block"}}, maps_apart),
        ({"alpha": 0, "distance": 10.0}, distances_apart),
        ({"alpha": 0, "angle": 20.0}, angles_apart),
    ],
    ids=["answers", "hint", "attention", "distance", "angle"],
)
def test_each_part_of_the_loss_brings_a_student_nearer_on_samples_that_it_never_saw(
    options, apart, bench, alone, held_out
):
    learned = distilled(bench, **SHORT, **options)
    assert apart(learned, held_out) < 0.9 * apart(alone, held_out)


def test_the_parts_add_up_in_one_loss(bench):
    weights = {"alpha": 0.5, "hint": 1.0, "attention": 1.0, "distance": 1.0, "angle": 1.0}
    options = SHORT | {"samples": 48}
    every = structure.digest(distilled(bench, **options, **weights))
    for name in weights:
        assert structure.digest(distilled(bench, **options, **(weights | {name: 0.0}))) != every
    hotter = distilled(bench, **options, **weights, temperature=8.0)
    assert structure.digest(hotter) != every


def test_a_regressor_is_learnt_where_widths_differ_and_is_dropped(bench, alone, held_out, monkeypatch):
    made = []
    monkeypatch.setattr(lesson, "regressor", lambda own, other: made.append(nn.Linear(own, other)) or made[-1])
    learned = distilled(bench, **(SHORT | {"lr": 2e-2, "epochs": 6}), alpha=0, hint=100.0, features={"block": "block"})
    assert (made[0].in_features, made[0].out_features) == (8, 16)
    assert set(learned.state_dict()) == set(alone.state_dict())

    def apart(student):
        own, teacher = (features(model, "block", held_out).float() for model in (student, compress_zoo.build()))
        with torch.no_grad():
            return float(losses.hint(own, teacher, made[0]) / (teacher - teacher.mean(0)).square().mean())

    assert apart(learned) < 0.5
    assert apart(learned) < 0.9 * apart(alone)


def test_a_star_stands_for_the_same_in_both_names(bench):
    by_pattern, by_name = (
        distilled(bench, **(SHORT | {"samples": 48}), hint=1.0, features=pairs)
        for pairs in ({"block.*": "block.*"}, {f"block.{part}": f"block.{part}" for part in ("conv", "bn", "mix")})
    )
    assert structure.digest(by_pattern) == structure.digest(by_name)


def test_hints_can_come_first_and_then_leave_what_is_above_them_alone(bench):
    said = []
    telling = msgspec.structs.replace(bench, say=said.append)
    first = distilled(telling, **SHORT, hint=1.0, hint_epochs=2, features={"stem": "stem"})
    assert (said[0][:9], said[-1][:9]) == ("epoch 1/2", "epoch 3/3")
    assert structure.digest(first) != structure.digest(distilled(bench, **SHORT, hint=1.0, features={"stem": "stem"}))


def test_attention_averages_maps_of_different_sizes_and_leaves_flat_layers_to_the_other_parts(bench):
    pairs = {"block": "block", "hidden": "hidden"}
    options = SHORT | {"alpha": 0, "attention": 1.0}
    assert structure.digest(distilled(bench, **options, features=pairs)) == structure.digest(
        distilled(bench, **options, features={"block": "block"})
    )
    with pytest.raises(StepFailed, match=r"attention cannot compare \(24,\) of the student .* dimensions, maps"):
        distilled(bench, **options, features={"hidden": "hidden"})
    own, teacher = torch.rand(2, 3, 3, 3), torch.rand(2, 5, 6, 6)
    assert losses.attention(own, teacher) > 0
    flat = functional.adaptive_avg_pool2d(teacher.square().mean(1, keepdim=True), 3)
    assert losses.attention(flat.sqrt(), teacher) < 1e-9


def test_a_student_is_nearer_to_its_teacher_than_one_that_saw_the_labels_alone(bench, alone, held_out):
    learned = distilled(bench, **SHORT)
    assert softly_apart(learned, held_out) < softly_apart(alone, held_out)


def test_several_outputs_are_learnt_by_name_and_labels_go_to_the_first(bench, held_out):
    around, notes = noting(bench, original=distill_zoo.detector)
    options = {"student": "distill_zoo:small_detector", "samples": 256, "epochs": 6, "lr": 3e-3}
    teacher = answers(distill_zoo.detector(), held_out)
    mean = (teacher["boxes"] - teacher["boxes"].mean(0)).square().mean()

    def errors(model):
        boxes = answers(model, held_out)["boxes"]
        likeness = functional.cosine_similarity(boxes, teacher["boxes"]).mean()
        return float((boxes - teacher["boxes"]).square().mean() / mean), float(1 - likeness)

    values, directions = (
        errors(distilled(around, distill_zoo.detector(), **options, outputs=outputs))
        for outputs in ({}, {"boxes": "cosine"})
    )
    assert values[0] < 1.2
    assert values[0] < directions[0]
    assert directions[1] < values[1]
    assert notes[0] == "labels, accuracy and metric are for the first of the outputs scores, boxes"
    with pytest.raises(UsageError, match=r"outputs.boxe: no such output; .* did you mean 'boxes'\?"):
        distilled(around, distill_zoo.detector(), **options, outputs={"boxe": "mse"})


def test_values_are_learnt_from_a_teacher_with_labels_or_without(values, held_out):
    teacher = distilled(values, distill_zoo.line(), alpha=0.01, epochs=8, lr=5e-3, batch=16)
    taught_by = msgspec.structs.replace(values, original=lambda: teacher)
    options = {"student": "distill_zoo:short_line", "epochs": 8, "lr": 5e-3, "batch": 16}
    learned = [answers(distilled(taught_by, teacher, **options, alpha=alpha), held_out) for alpha in (1.0, 0.5)]
    wanted = answers(teacher, held_out)
    assert all(float((found - wanted).square().mean()) < 0.6 * float(wanted.var()) for found in learned)
    assert not torch.equal(learned[0], learned[1])


def test_a_teacher_of_other_outputs_is_refused_before_training_with_both_shapes(bench):
    around = msgspec.structs.replace(bench, original=distill_zoo.detector)
    with pytest.raises(StepFailed, match=r"outputs 'scores' \(4,\), 'boxes' \(6,\), the teacher 'scores' \(4,\), 'b"):
        distilled(around, distill_zoo.detector(), student="distill_zoo:other_boxes", samples=64)
    with pytest.raises(StepFailed, match=r"student gives outputs '0' \(3,\), the teacher '0' \(4,\); name a teacher"):
        distilled(bench, student="distill_zoo:line", samples=64)


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        (
            {"features": {"blok": "block"}},
            UsageError,
            r"features.'blok': matches no inner layer; did you mean 'block'\?",
        ),
        ({"features": {"block": "blok"}}, UsageError, r"the teacher has no inner layer 'blok'; did you mean 'block'\?"),
        ({"features": {"block": "*"}}, UsageError, r"features.'block': '\*' has more \* than 'block'"),
        ({"features": {"block": "hidden"}}, StepFailed, r"hint cannot compare \(8, 6, 6\) of the student with \(24,\)"),
        ({"student": "distill_zoo:sequence"}, UsageError, r"features: hint found no layers of one name"),
        ({"student": "distill_zoo:nothing"}, UsageError, r"distill.student = 'distill_zoo:nothing'"),
        ({"teacher": "distill_zoo:nothing"}, UsageError, r"distill.teacher = 'distill_zoo:nothing'"),
    ],
)
def test_a_name_that_fits_nothing_is_refused_with_a_way_out(options, error, line, bench):
    with pytest.raises(error, match=line):
        distilled(bench, **(SHORT | {"hint": 1.0} | options))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"alpha": 0}, "alpha: 0 leaves nothing to learn"),
        ({"features": {"a": "b"}}, "features: no part looks at features"),
        ({"hint_epochs": 2}, "hint_epochs: expected a weight for hint"),
        ({"peer": "a:b"}, "peer: is for mode 'online', and mode is 'offline'"),
        ({"generations": 2, "mode": "online"}, "generations: is for mode 'self'"),
        ({"alpha": 1, "mode": "online"}, "alpha: with 1 nobody hears of the labels"),
        ({"mode": "self"}, "generations: mode 'self' expects either generations"),
        ({"mode": "self", "generations": 1, "deep": 1.0}, "generations: mode 'self' expects either generations"),
        ({"mode": "self", "generations": 1, "exits": ["a"]}, "exits: expected a weight for deep"),
        ({"mode": "self", "deep": 1.0, "angle": 1.0}, "deep: heads learn from answers and hints"),
        ({"mode": "online", "teacher": "a:b"}, "teacher: is for mode 'offline'"),
    ],
)
def test_options_that_contradict_each_other_are_refused_by_name(options, line):
    with pytest.raises(UsageError, match=line):
        step_of(**options)


def test_sequences_have_their_channels_where_their_layers_put_them(bench):
    around = msgspec.structs.replace(bench, original=distill_zoo.wide_sequence)
    options = {"student": "distill_zoo:sequence", "samples": 64, "hint": 1.0, "attention": 1.0}
    for layer in ("conv", "rnn"):
        learned = distilled(around, distill_zoo.wide_sequence(), **options, features={layer: layer})
        assert learned.conv.out_channels == 6


def test_peers_learn_from_each_other(bench):
    samples = bench.split("validate")

    def right(model):
        return (answers(model, torch.from_numpy(samples.x.copy())).argmax(1).numpy() == samples.y).mean()

    options = SHORT | {"epochs": 4, "temperature": 1.0}
    # Its peer begins as ignorant as it is: only one that learns, too, can be of use.
    by_a_peer = distilled(bench, **options, mode="online", peer="compress_zoo:student")
    by_the_ignorant = distilled(bench, **options, teacher="compress_zoo:student")
    assert right(by_a_peer) > right(by_the_ignorant) + 0.1
    digests = {structure.digest(by_a_peer), structure.digest(distilled(bench, **options, mode="online"))}
    digests.add(structure.digest(distilled(bench, **options, mode="online", peer="compress_zoo:wide")))
    digests.add(structure.digest(distilled(bench, **options, mode="online", hint=1.0)))
    assert len(digests) == 4


def test_each_generation_is_taught_by_the_one_before(bench, monkeypatch):
    options = {"samples": 64, "lr": 3e-3}
    said = []
    telling = msgspec.structs.replace(bench, say=said.append)
    first = distilled(bench, **options, mode="self", generations=1)
    second = distilled(telling, **options, mode="self", generations=2)
    assert [line.partition(",")[0] for line in said] == ["generation 1/2", "generation 2/2"]
    monkeypatch.setattr(distill_zoo, "first", first, raising=False)
    next_seed = msgspec.structs.replace(bench, seed=bench.seed + 1)
    by_hand = distilled(next_seed, **options, teacher="distill_zoo:first", anew=True)
    assert structure.digest(second) == structure.digest(by_hand)
    assert structure.digest(second) != structure.digest(first)


def test_a_new_start_forgets_the_weights_and_generations_make_one_unless_told_otherwise(bench, held_out):
    options = {"samples": 64, "lr": 1e-6}
    before = answers(compress_zoo.build(), held_out)

    def moved(**more):
        return float((answers(distilled(bench, **options, **more), held_out) - before).abs().max())

    assert moved() < 0.5 < moved(anew=True)
    assert moved(mode="self", generations=1, anew=False) < 0.5 < moved(mode="self", generations=1)


def test_what_cannot_start_anew_is_named(bench):
    around, notes = noting(bench)
    distilled(around, student="distill_zoo:half", samples=64, anew=True)
    assert notes == ["kept, since their layers have no reset_parameters(): shift"]
    with pytest.raises(StepFailed, match=r"no layer of this model can start anew"):
        distilled(bench, student="distill_zoo:fixed", samples=64, mode="online")


def test_heads_on_inner_layers_teach_them_and_are_dropped(bench):
    around, notes = noting(bench)
    options = {"student": "compress_zoo:student", "samples": 64, "mode": "self"}
    made = {
        structure.digest(distilled(around, **options, **more))
        for more in (
            {"deep": 0.5},
            {"deep": 2.0},
            {"deep": 0.5, "alpha": 0.0},
            {"deep": 0.5, "temperature": 1.0},
            {"deep": 0.5, "hint": 1.0},
            {"deep": 0.5, "exits": ["hid*"]},
        )
    }
    assert len(made) == 6
    assert notes[0] == "heads on stem, block, hidden learnt beside it and were dropped"
    assert notes[-1] == "heads on hidden learnt beside it and were dropped"
    assert set(distilled(bench, **options, deep=1.0).state_dict()) == set(compress_zoo.student().state_dict())
    with pytest.raises(UsageError, match=r"exits: 'hiden' matches no inner layer; did you mean 'hidden'\?"):
        distilled(bench, **options, deep=1.0, exits=["hiden"])


def test_heads_learn_to_answer_and_bring_the_deepest_features_into_early_layers(bench, monkeypatch):
    samples = bench.split("validate")
    x = torch.from_numpy(samples.x.copy())
    made = []

    class Kept(exits.Exit):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(exits, "Exit", Kept)

    def apart(model):
        early, deep = (features(model, layer, x).mean((2, 3)) for layer in ("stem", "block"))
        return float((early - deep).square().mean() / deep.square().mean())

    options = SHORT | {"mode": "self", "epochs": 8, "lr": 2e-2, "exits": ["stem", "block"]}
    distant, near = (distilled(bench, **options, deep=1.0, hint=hint) for hint in (0.0, 5.0))
    assert apart(near) < 0.5 * apart(distant)
    assert len(made) == 4
    right = answers(made[1], features(distant, "block", x).float()).argmax(1).numpy() == samples.y
    assert right.mean() > 0.7


def test_a_teacher_answers_each_sample_once_unless_batches_are_augmented(bench, monkeypatch):
    asked = []

    class Counting(compress_zoo.Net):
        def forward(self, x):
            asked.append(len(x))
            return super().forward(x)

    around = msgspec.structs.replace(bench, original=Counting)
    options = SHORT | {"samples": 64, "epochs": 3, "batch": 64}
    distilled(around, **options)
    assert asked == [2, 64]
    asked.clear()
    distilled(msgspec.structs.replace(around, augment=lambda x, _: x), **options)
    assert asked == [2, 64, 64, 64]


def test_a_loss_that_ends_being_finite_later_on_keeps_the_best_epoch_and_says_so(bench):
    options = {"student": "compress_zoo:student", "samples": 128, "epochs": 3, "lr": 3e-3}
    around, notes = noting(bench, augment=distill_zoo.nan_from_step(3))
    learned = distilled(around, **options)
    assert len(notes) == 1
    assert notes[0].startswith("the loss became nan in epoch 2; lower lr (0.003); training ended there, with the ")
    assert notes[0].endswith("weights after epoch 1")
    assert all(bool(weight.isfinite().all()) for weight in learned.parameters())
    again, _ = noting(bench, augment=distill_zoo.nan_from_step(2))
    assert structure.digest(distilled(again, **options)) == structure.digest(learned)
    with pytest.raises(Diverged, match="in epoch 1"):
        distilled(msgspec.structs.replace(bench, augment=distill_zoo.nan_from_step(1)), **options)


def test_what_earlier_steps_made_is_lost_to_training_to_a_student_and_to_a_new_start():
    assert step_of().breaks() == {"shared", "grid"}
    assert step_of(mode="self", generations=1).breaks() == {"shared", "grid", "zeros"}
    assert step_of(student="a:b").breaks() == {"shared", "grid", "zeros", "factors"}


def test_a_recipe_that_has_a_student_start_over_after_pruning_is_refused():
    prune, student = '{ technique = "prune", kind = "magnitude", ratio = 0.5 }', 'student = "compress_zoo:student"'
    parse(HEAD + one(prune, '{ technique = "distill" }'))
    with pytest.raises(UsageError, match=r"steps\[1\]: distill would undo the zeros that prune \(steps\[0\]\) makes"):
        parse(HEAD + one(prune, f'{{ technique = "distill", {student} }}'))


def test_the_weights_of_everyone_who_takes_part_belong_to_the_key():
    keys = {
        step_of().extra_key(),
        step_of(student="compress_zoo:student").extra_key(),
        step_of(teacher="compress_zoo:wide").extra_key(),
        step_of(mode="online", peer="compress_zoo:build").extra_key(),
    }
    assert len(keys) == 4


def test_the_relational_losses_are_nought_for_scaled_and_turned_features():
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(6, 5, generator=generator)
    turned = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    for loss in (losses.distance, losses.angle):
        assert float(loss(3 * found @ turned, found)) == pytest.approx(0, abs=1e-10)
        assert float(loss(found.square(), found)) > 1e-3


def test_features_that_are_all_alike_give_finite_slopes():
    same = torch.zeros(4, 3, requires_grad=True)
    total = losses.distance(same, torch.zeros(4, 3)) + losses.angle(same, torch.zeros(4, 3))
    total.backward()
    assert np.isfinite(same.grad.numpy()).all()
