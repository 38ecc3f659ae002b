from __future__ import annotations

import compress_zoo
import msgspec
import pytest
import torch
from edgepress_host import technique
from edgepress_host.press.strict import convert
from edgepress_host.press.structure import sharers
from edgepress_host.technique import StepFailed
from torch import nn

FOUND = technique.found()
MODULE = [(tag, options) for tag, kind in FOUND.items() if kind.stage == "module" for options in kind.examples]


class Called(nn.Module):
    """A convolution under two names, which is called twice, and two dense layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.once = nn.Conv2d(8, 8, 3, padding=1)
        self.twice = self.once
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)
        self.down.weight = self.up.weight
        self.head = nn.Linear(8, compress_zoo.CLASSES)

    def forward(self, x):
        x = self.twice(self.once(self.stem(x).relu()).relu()).mean((2, 3))
        return self.head(self.down(self.up(x).relu()).relu())


def done(tag, options, model, bench):
    notes = []
    step = convert(options, FOUND[tag])
    step.check()
    around = msgspec.structs.replace(bench, original=lambda: model, note=notes.append)
    return step.apply_module(model, around), notes


@pytest.fixture
def called():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Called().eval()


@pytest.mark.parametrize(("tag", "options"), MODULE)
def test_layers_that_share_a_weight_share_it_after_every_step(tag, options, bench):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = compress_zoo.tied().eval()
    thin, _ = done(tag, options, model, bench)
    # Whatever becomes of the layers' names, there is one such matrix and not two.
    assert sum(weight.shape == (24, 24) for weight in thin.parameters()) == 1
    held = dict(thin.named_modules())
    if {"first", "second"} <= held.keys():
        assert held["first"].weight is held["second"].weight


def test_who_shares_with_whom(called):
    assert sharers(called) == {"once": ["twice"], "twice": ["once"], "up": ["down"], "down": ["up"]}
    assert sharers(called, aliases=False) == {"up": ["down"], "down": ["up"]}
    assert sharers(compress_zoo.build()) == {}


def test_rebuilding_steps_leave_what_is_shared_and_name_it(called, bench):
    thin, notes = done("structured", {"block": 4}, called, bench)
    assert type(thin.head).__name__ == "CirculantLinear"
    assert thin.up.weight is thin.down.weight
    assert notes == ["left as they are: up (shares its weight with down), down (shares its weight with up)"]
    with pytest.raises(StepFailed, match=r"no dense layer became .*: up \(shares its weight with down\)"):
        done("structured", {"block": 4, "layers": {"head": {"skip": True}}}, called, bench)
    with pytest.raises(StepFailed, match=r"once \(shares its weight with twice\)"):
        done("compact", {"min_channels": 2, "epochs": 0, "layers": {"stem": {"skip": True}}}, called, bench)
    thin, notes = done("low_rank", {"method": "auto", "energy": 0.3}, called, bench)
    assert thin.once is thin.twice
    assert "once is left as it is: it shares its weight with twice" in notes


def test_channels_of_layers_that_share_a_weight_stay(called, bench):
    thin, notes = done("prune", {"ratio": 0.5, "round_to": 2}, called, bench)
    assert thin.up.weight is thin.down.weight
    assert thin.once is thin.twice
    assert thin.up.weight.shape == (8, 8)
    assert notes == ["kept all channels: stem, once, up, down"]


def test_hidden_units_between_layers_that_share_a_weight_are_refused_by_name(called, bench):
    with pytest.raises(StepFailed, match=r"up shares its weight with down, .*; skip it \(layers.up = "):
        done("prune", {"kind": "hidden", "ratio": 0.5}, called, bench)
