from __future__ import annotations

import numpy as np
import prune_zoo as zoo
import pytest
import torch
from edgepress_host.press import structure
from edgepress_host.press.data import Samples
from edgepress_host.press.training import Step
from edgepress_host.technique import StepFailed
from prune_lab import inputs, step


@pytest.fixture
def tuned(coupled, bench):
    def call(**options):
        common = {"kind": "magnitude", "ratio": 0.9, "epochs": 4, "lr": 5e-3}
        return step(**common | options).apply_module(coupled, options.pop("bench", bench))

    return call


def test_a_taught_model_answers_more_like_the_original(tuned, coupled):
    def far(model):
        with torch.no_grad():
            return float((model(inputs(96)).softmax(1) - coupled(inputs(96)).softmax(1)).abs().mean())

    assert far(tuned(teacher=True, alpha=1.0)) < far(tuned())


def test_a_teacher_of_the_users_own_teaches_in_its_place(tuned, coupled):
    wise, original = tuned(teacher="prune_zoo:another"), tuned(teacher=True)
    assert structure.digest(wise) != structure.digest(original)
    named = [step(kind="magnitude", epochs=1, teacher=some).extra_key() for some in ("prune_zoo:another", True)]
    assert named[0]
    assert not named[1]


def test_a_teacher_with_other_outputs_is_refused_before_training(tuned):
    with pytest.raises(StepFailed, match=r"teacher: prune_zoo:wider gives outputs of shape .* the model"):
        tuned(teacher="prune_zoo:wider")


@pytest.mark.parametrize("change", [{"alpha": 0.2}, {"temperature": 1.0}], ids=str)
def test_temperature_and_mix_change_what_is_learned(change, tuned):
    assert structure.digest(tuned(teacher=True, **change)) != structure.digest(tuned(teacher=True))


def test_answers_to_augmented_inputs_are_the_teachers_own(coupled):
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


def test_values_are_taught_by_squared_error(coupled):
    from edgepress_host.press.soft import taught

    x = zoo.load("train")[0]
    with torch.no_grad():
        answers = coupled(torch.from_numpy(x))
    labels = np.zeros(answers.shape, np.float32)
    loss = taught(coupled, Samples(x, labels), augmented=False, temperature=4.0, alpha=0.5)
    at = Step(torch.from_numpy(x[:8]), torch.from_numpy(labels[:8]), torch.arange(8), 0, 1)
    want = 0.5 * answers[:8].square().mean()
    assert float(loss(torch.zeros(8, zoo.CLASSES), at)) == pytest.approx(float(want), rel=1e-4)
