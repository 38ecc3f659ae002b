from __future__ import annotations

import pytest
import torch
from edgepress_host.press import structure
from edgepress_host.technique import StepFailed
from edgepress_host.techniques.low_rank import LowRank
from edgepress_protocol.errors import UsageError
from technique_lab import noise, step_of
from torch import nn


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
    thin, notes = pressed(Net().eval(), noise(2, 8, 4, 4), **options)
    assert isinstance(thin.small, nn.Sequential)
    thin, notes = pressed(Net().eval(), noise(2, 8, 4, 4), measure=True, **options)
    assert isinstance(thin.small, nn.Conv2d)
    assert isinstance(thin.last, nn.Sequential)
    said = [note for note in notes if note.startswith("small is left as it is: cp of rank 16 ran ")]
    assert float(said[0].split(" ran ")[1].split()[0]) >= 1
    assert said[0].endswith("times as long in ONNX Runtime")


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
    _, notes = pressed(Awkward(tied=True).eval(), noise(2, 5, 8), method="auto", energy=0.3)
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
    original, x = Awkward(tied=False).eval(), noise(2, 5, 8)
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
        pressed(Reading().eval(), noise(2, 16), rank=2)


def test_a_model_without_a_layer_for_the_method_is_refused(pressed):
    with pytest.raises(StepFailed, match="no layer that method 'svd' can take apart"):
        pressed(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), noise(2, 3, 5, 5), rank=1)


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
        step_of(LowRank, **options)
