from __future__ import annotations

import compress_zoo
import distill_zoo
import msgspec
import pytest
import torch
from distill_lab import SHORT, distilled
from edgepress_host.press import structure
from edgepress_host.press.training import Diverged
from edgepress_host.technique import StepFailed
from edgepress_protocol.errors import UsageError
from technique_lab import answers, noting
from torch.nn import functional


def test_several_outputs_are_learnt_by_name_and_labels_go_to_the_first(bench, held_out):
    around, notes = noting(bench, original=distill_zoo.detector)
    options = {"student": "distill_zoo:small_detector", "samples": 256, "epochs": 6, "lr": 3e-3}
    teacher = answers(distill_zoo.detector(), held_out)
    mean = (teacher["boxes"] - teacher["boxes"].mean(0)).square().mean()

    def errors(model):
        boxes = answers(model, held_out)["boxes"]
        likeness = functional.cosine_similarity(boxes, teacher["boxes"]).mean()
        return float((boxes - teacher["boxes"]).square().mean() / mean), float(1 - likeness)

    values, directions = (
        errors(distilled(around, distill_zoo.detector(), **options, outputs=outputs))
        for outputs in ({}, {"boxes": "cosine"})
    )
    assert values[0] < 1.2
    assert values[0] < directions[0]
    assert directions[1] < values[1]
    assert notes[0] == "labels, accuracy and metric are for the first of the outputs scores, boxes"
    with pytest.raises(UsageError, match=r"outputs.boxe: no such output; .* did you mean 'boxes'\?"):
        distilled(around, distill_zoo.detector(), **options, outputs={"boxe": "mse"})


def test_values_are_learnt_from_a_teacher_with_labels_or_without(values, held_out):
    teacher = distilled(values, distill_zoo.line(), alpha=0.01, epochs=8, lr=5e-3, batch=16)
    taught_by = msgspec.structs.replace(values, original=lambda: teacher)
    options = {"student": "distill_zoo:short_line", "epochs": 8, "lr": 5e-3, "batch": 16}
    learned = [answers(distilled(taught_by, teacher, **options, alpha=alpha), held_out) for alpha in (1.0, 0.5)]
    wanted = answers(teacher, held_out)
    assert all(float((found - wanted).square().mean()) < 0.6 * float(wanted.var()) for found in learned)
    assert not torch.equal(learned[0], learned[1])


def test_a_teacher_of_other_outputs_is_refused_before_training_with_both_shapes(bench):
    around = msgspec.structs.replace(bench, original=distill_zoo.detector)
    with pytest.raises(StepFailed, match=r"outputs 'scores' \(4,\), 'boxes' \(6,\), the teacher 'scores' \(4,\), 'b"):
        distilled(around, distill_zoo.detector(), student="distill_zoo:other_boxes", samples=64)
    with pytest.raises(StepFailed, match=r"student gives outputs '0' \(3,\), the teacher '0' \(4,\); name a teacher"):
        distilled(bench, student="distill_zoo:line", samples=64)


def test_sequences_have_their_channels_where_their_layers_put_them(bench):
    around = msgspec.structs.replace(bench, original=distill_zoo.wide_sequence)
    options = {"student": "distill_zoo:sequence", "samples": 64, "hint": 1.0, "attention": 1.0}
    for layer in ("conv", "rnn"):
        learned = distilled(around, distill_zoo.wide_sequence(), **options, features={layer: layer})
        assert learned.conv.out_channels == 6


def test_a_teacher_answers_each_sample_once_unless_batches_are_augmented(bench, monkeypatch):
    asked = []

    class Counting(compress_zoo.Net):
        def forward(self, x):
            asked.append(len(x))
            return super().forward(x)

    around = msgspec.structs.replace(bench, original=Counting)
    options = SHORT | {"samples": 64, "epochs": 3, "batch": 64}
    distilled(around, **options)
    assert asked == [2, 64]
    asked.clear()
    distilled(msgspec.structs.replace(around, augment=lambda x, _: x), **options)
    assert asked == [2, 64, 64, 64]


def test_a_loss_that_ends_being_finite_later_on_keeps_the_best_epoch_and_says_so(bench):
    options = {"student": "compress_zoo:student", "samples": 128, "epochs": 3, "lr": 3e-3}
    around, notes = noting(bench, augment=distill_zoo.nan_from_step(3))
    learned = distilled(around, **options)
    assert len(notes) == 1
    assert notes[0].startswith("the loss became nan in epoch 2; lower lr (0.003); training ended there, with the ")
    assert notes[0].endswith("weights after epoch 1")
    assert all(bool(weight.isfinite().all()) for weight in learned.parameters())
    again, _ = noting(bench, augment=distill_zoo.nan_from_step(2))
    assert structure.digest(distilled(again, **options)) == structure.digest(learned)
    with pytest.raises(Diverged, match="in epoch 1"):
        distilled(msgspec.structs.replace(bench, augment=distill_zoo.nan_from_step(1)), **options)
