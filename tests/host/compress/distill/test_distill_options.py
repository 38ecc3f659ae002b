from __future__ import annotations

import pytest
from compress_recipes import HEAD, one
from distill_lab import SHORT, distilled, step_of
from edgepress_host.recipe import parse
from edgepress_host.technique import StepFailed
from edgepress_protocol.errors import UsageError


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
