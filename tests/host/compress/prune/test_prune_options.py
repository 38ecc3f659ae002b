from __future__ import annotations

import pytest
from edgepress_protocol.errors import UsageError
from prune_lab import step


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
