from __future__ import annotations

import compress_zoo
import distill_zoo
import msgspec
import pytest
import torch
from distill_lab import SHORT, distilled, features
from edgepress_host.press import structure
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.distill import exits
from edgepress_protocol.errors import UsageError
from technique_lab import answers, noting


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
