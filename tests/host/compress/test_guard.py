"""What is kept of a variant whose steps lose accuracy, or fail."""

from __future__ import annotations

from compress_recipes import HEAD, one

CUT = '{{ technique = "prune", kind = "magnitude", ratio = {} }}'
GENTLE = '{ technique = "quantize", mode = "fp16" }'


def training(epochs):
    return f'{{ technique = "distill", epochs = {epochs}, lr = 1e-2 }}'


def test_the_guard_waits_for_a_later_step_that_trains(press, tmp_path):
    made = press(HEAD + one(CUT.format(0.93), training(12), GENTLE), tmp_path / "out")["v.onnx"]
    assert [step.verdict for step in made.steps] == ["accuracy guard", "ok", "ok"]
    assert (made.verdict, made.kept_steps) == ("ok", 3)
    assert made.accuracy > made.steps[0].measured.accuracy + 0.1


def test_what_training_does_not_bring_back_is_not_kept_and_the_last_try_is_named(press, tmp_path):
    made = press(HEAD + one(CUT.format(0.99), training(1), GENTLE), tmp_path / "out")["v.onnx"]
    assert [step.verdict for step in made.steps] == ["accuracy guard", "accuracy guard"]
    assert (made.verdict, made.kept_steps, made.file) == ("accuracy guard", 0, None)
    assert made.reason.startswith("step 2, distill: accuracy")
    assert made.reason.endswith("nothing was kept")


def test_a_step_that_fails_leaves_what_the_steps_before_it_made(press, tmp_path):
    failing = '{ technique = "quantize", mode = "static", io = "int8" }'
    made = press(HEAD + one('{ technique = "prune", ratio = 0.25 }', failing), tmp_path / "out")["v.onnx"]
    assert [step.verdict for step in made.steps] == ["ok", "failed"]
    assert (made.verdict, made.kept_steps) == ("failed", 1)
    assert made.reason.startswith("step 2, quantize: ")
    assert made.reason.endswith("kept as of step 1 of 2")
    assert made.accuracy == made.steps[0].measured.accuracy
    assert made.file is not None


def test_a_metric_without_a_number_fails_what_it_was_asked_about_and_the_run_goes_on(press, tmp_path):
    head = 'metric = "compress_zoo:not_a_number"\n' + HEAD
    made = press(head + one(GENTLE), tmp_path / "out")
    assert {variant.verdict for variant in made.variants.variants} == {"failed"}
    assert "the metric of these answers is nan" in made["original.onnx"].reason
