from __future__ import annotations

import compress_zoo
import msgspec
import numpy as np
import pytest
import torch
from distill_lab import SHORT, distilled, features
from edgepress_host.press import structure
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.distill import lesson, losses
from technique_lab import answers, noise
from torch import nn
from torch.nn import functional


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
    # Hints alone have no weight, and after their epochs they have ended.
    heavier = distilled(bench, **SHORT, hint=5.0, hint_epochs=2, features={"stem": "stem"})
    assert structure.digest(first) == structure.digest(heavier)


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
    assert losses.attention(3 * flat.sqrt(), teacher) < 1e-9


def test_a_student_is_nearer_to_its_teacher_than_one_that_saw_the_labels_alone(bench, alone, held_out):
    learned = distilled(bench, **SHORT)
    assert softly_apart(learned, held_out) < softly_apart(alone, held_out)


def test_the_relational_losses_are_nought_for_scaled_and_turned_features():
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(6, 5, generator=generator)
    turned = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    for loss in (losses.distance, losses.angle):
        assert float(loss(3 * found @ turned, found)) == pytest.approx(0, abs=1e-10)
        assert float(loss(found.square(), found)) > 1e-3


def test_distances_are_those_of_all_pairs_and_angles_those_of_all_triples():
    own, other = noise(5, 4, seed=1).double(), noise(5, 3, seed=2).double()

    def distances(rows):
        return torch.pdist(rows) / torch.pdist(rows).mean()

    def cosines(rows):
        sides = functional.normalize(rows[None] - rows[:, None], dim=-1)
        return sides @ sides.transpose(1, 2)

    for loss, measured in ((losses.distance, distances), (losses.angle, cosines)):
        wanted = functional.smooth_l1_loss(measured(own), measured(other))
        assert float(loss(own, other)) == pytest.approx(float(wanted), rel=1e-6)


def test_features_that_are_all_alike_give_finite_slopes():
    same = torch.zeros(4, 3, requires_grad=True)
    total = losses.distance(same, torch.zeros(4, 3)) + losses.angle(same, torch.zeros(4, 3))
    total.backward()
    assert np.isfinite(same.grad.numpy()).all()
