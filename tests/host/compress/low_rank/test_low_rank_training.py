from __future__ import annotations

import compress_zoo
import pytest
from edgepress_host.press import structure
from technique_lab import top1


def test_factorized_from_the_start_nothing_of_the_training_before_is_left(pressed):
    untrained = compress_zoo.Net().eval()
    options = {"rank": 3, "when": "start", "epochs": 1, "samples": 64}
    results = [pressed(model, **options)[0] for model in (compress_zoo.build(), untrained)]
    assert structure.digest(results[0]) == structure.digest(results[1])
    after, _ = pressed(compress_zoo.build(), rank=3, epochs=1, samples=64)
    assert structure.digest(after) != structure.digest(results[0])


def test_factors_from_the_start_are_as_large_as_the_layer_would_be(pressed):
    thin, _ = pressed(compress_zoo.build(), rank=3, when="start", epochs=1, samples=2, lr=1e-9)
    # torch draws weights of a dense layer between ±1 / √inputs: their squares are 1 / (3 · inputs) in the mean.
    norm = float((thin.hidden[1].weight @ thin.hidden[0].weight).detach().norm())
    assert norm == pytest.approx((24 / 3) ** 0.5, rel=0.03)


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
