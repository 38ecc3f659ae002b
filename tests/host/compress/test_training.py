"""What every technique that trains has in common: how long, how fast, on what, and from whom it learns."""

from __future__ import annotations

import math

import compress_zoo
import msgspec
import numpy as np
import pytest
import torch
from edgepress_host.press.strict import convert
from edgepress_host.press.trained import Trained
from edgepress_host.technique import found
from edgepress_protocol.errors import UsageError
from torch import nn


class Slope(nn.Module):
    """A sum of weights, each of which therefore has the same slope, whatever the input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.seen = []

    def forward(self, x):
        self.seen.append(float(self.weight.detach()[0]))
        return self.weight.sum()


class Lesson(Trained, frozen=True):
    """A technique that only trains, by a loss of the test's."""


def taught(bench, loss, **options):
    """Weights of a `Slope` before each step of training and after the last, and the model."""
    model = Slope()
    Lesson(**options).train(model, bench, loss)
    return np.array([*model.seen, float(model.weight.detach()[0])]), model


def descend(outputs, _step):
    return outputs


def stay(outputs, _step):
    return 0 * outputs


@pytest.mark.parametrize("lr", [1e-2, 3e-2])
def test_steps_are_as_long_as_the_learning_rate_and_shrink_like_a_cosine(lr, bench):
    weights, _ = taught(bench, descend, epochs=2, lr=lr, batch=64, samples=256, weight_decay=0.0)
    # With a slope that never changes, Adam's steps are as long as the rate at each.
    wanted = [lr / 2 * (1 + math.cos(math.pi * number / 8)) for number in range(8)]
    assert weights[:-1] - weights[1:] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weights_decay_by_the_share_asked_for(decay, bench):
    weights, _ = taught(bench, stay, epochs=1, lr=0.1, batch=64, samples=64, weight_decay=decay)
    assert weights[-1] == pytest.approx(1 - 0.1 * decay)


def test_batches_are_of_the_size_and_the_samples_and_as_often_as_asked_for(bench):
    batches = []

    def watch(x, _chance):
        batches.append(x.clone())
        return x

    watched = msgspec.structs.replace(bench, augment=watch)
    taught(watched, descend, epochs=3, batch=16, samples=40)
    assert [len(batch) for batch in batches] == [16, 16, 8] * 3
    first = {row.tobytes() for row in bench.split("train").x[:40]}
    for epoch in range(3):
        rows = [row.numpy().tobytes() for batch in batches[3 * epoch : 3 * epoch + 3] for row in batch.contiguous()]
        assert set(rows) == first
    # Shuffled anew each time, by the seed.
    assert not torch.equal(batches[0], batches[3])
    again = batches.copy()
    batches.clear()
    taught(watched, descend, epochs=3, batch=16, samples=40)
    assert all(torch.equal(*pair) for pair in zip(again, batches, strict=True))
    batches.clear()
    taught(msgspec.structs.replace(watched, seed=1), descend, epochs=1, batch=16, samples=40)
    assert not torch.equal(again[0], batches[0])


def test_all_of_the_split_is_seen_where_no_number_of_samples_is_given(bench):
    weights, _ = taught(bench, descend, epochs=1, batch=64)
    assert len(weights) - 1 == math.ceil(len(bench.split("train").x) / 64)


@pytest.mark.parametrize(("wanted", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
def test_forward_passes_run_in_bfloat16_where_that_is_asked_for(wanted, kind, bench):
    seen = []
    model = compress_zoo.build()
    model.hidden.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))

    def loss(outputs, _step):
        assert outputs.dtype == torch.float32
        return outputs.square().mean()

    Lesson(epochs=1, batch=32, samples=32, bfloat16=wanted).train(model, bench, loss)
    assert seen == [kind]
    assert model.hidden.weight.dtype == torch.float32


def test_without_epochs_nothing_learns(bench):
    weights, _ = taught(bench, descend, epochs=0)
    assert weights.tolist() == [1.0]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("epochs", -1, "epochs: expected int >= 0"),
        ("epochs", 1001, "epochs: expected int <= 1000"),
        ("lr", 0.0, "lr: expected float > 0"),
        ("lr", 11.0, "lr: expected float <= 10"),
        ("batch", 1, "batch: expected int >= 2"),
        ("samples", 1, "samples: expected int >= 2"),
        ("weight_decay", 1.5, "weight_decay: expected float <= 1"),
        ("bfloat16", 1, "bfloat16: expected bool, got int"),
    ],
)
def test_options_of_training_out_of_range_are_refused_by_name(key, value, line):
    with pytest.raises(UsageError, match=line):
        convert({key: value}, found()["prune"])
