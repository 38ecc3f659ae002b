from __future__ import annotations

import msgspec
import prune_zoo as zoo
import pytest
import torch
from edgepress_host.press.training import Step
from prune_lab import bench_of, step, zeros
from torch import nn

POLYNOMIAL = {
    "kind": "magnitude",
    "ratio": 0.9,
    "schedule": "polynomial",
    "epochs": 4,
    "frequency": 2,
    "initial_sparsity": 0.3,
    "lr": 5e-3,
}


@pytest.fixture(scope="module")
def gradual(coupled):
    """The outcome that those of other options are told from."""
    return step(**POLYNOMIAL).apply_module(coupled, bench_of(coupled, lambda _: None))


@pytest.mark.parametrize("schedule", ["constant", "linear", "polynomial"])
def test_the_ratio_is_there_after_training_and_no_mask_is_left(schedule, coupled, bench):
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
def test_each_option_changes_what_is_left(change, coupled, bench, gradual):
    other = step(**POLYNOMIAL | change).apply_module(coupled, bench)
    assert not torch.equal(other.hidden.weight != 0, gradual.hidden.weight != 0)
    assert zeros(other.hidden) == pytest.approx(0.9, abs=0.01)


def test_the_ramp_is_the_papers():
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


def test_a_weight_that_is_gone_stays_gone_however_much_the_optimiser_wants_it():
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


def watched(model):
    """The same net, and the sparsities that one of its layers has while it trains, each once."""
    seen = {}

    class Watched(zoo.Coupled):
        def forward(self, x):
            if self.training:
                seen[zeros(self.hidden)] = None
            return super().forward(x)

    same = zoo.seeded(Watched)
    same.load_state_dict(model.state_dict())
    return same, seen


@pytest.mark.parametrize(
    ("schedule", "ratios"),
    [
        ("constant", [0.0, 0.9]),
        ("linear", [0.0, 0.18, 0.36, 0.54, 0.72]),
        ("polynomial", [0.0, 0.4392, 0.7056, 0.8424, 0.8928]),
    ],
)
def test_each_schedule_comes_to_the_ratio_in_its_own_way(schedule, ratios, coupled, bench):
    original, seen = watched(coupled)
    # Six steps; the last mask comes after the last of them.
    step(kind="magnitude", ratio=0.9, schedule=schedule, epochs=2, frequency=1, end=1.0).apply_module(original, bench)
    assert [*seen] == pytest.approx(ratios, abs=1e-3)


@pytest.mark.parametrize(("iterations", "ratios"), [(2, [0.75, 0.9375]), (4, [0.5, 0.75, 0.875, 0.9375])])
def test_rounds_take_the_same_part_of_what_is_left_and_train_after_each(iterations, ratios, coupled, bench):
    said = []
    original, seen = watched(coupled)
    options = {"kind": "magnitude", "ratio": 0.9375, "epochs": 1, "lr": 5e-3}
    telling = msgspec.structs.replace(bench, say=said.append)
    pruned = step(**options, schedule="iterative", iterations=iterations).apply_module(original, telling)
    assert [*seen] == pytest.approx(ratios, abs=1e-3)
    rounds = [line for line in said if "round" in line]
    assert rounds == [f"pruning (magnitude, round {n} of {iterations})" for n in range(1, iterations + 1)]
    once = step(**options).apply_module(coupled, bench)
    assert not torch.equal(once.hidden.weight != 0, pruned.hidden.weight != 0)
