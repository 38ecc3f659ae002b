from __future__ import annotations

import hashlib
import importlib
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy
from compress_recipes import BOTH, HEAD, PLAIN, one
from edgepress_host import evaluate, exporters, variants
from edgepress_host.press.measure import count_file

INT8 = '{ technique = "quantize", mode = "static", samples = 16 }'


def test_every_variant_is_written_measured_and_described(made):
    assert variants.read(made.folder) == made.variants
    names = [f"{v.name}.{v.format}" for v in made.variants.variants]
    assert names[:4] == ["original.onnx", "original.tflite", "int8.onnx", "int8.tflite"]
    for variant in made.variants.variants:
        if variant.file is None:
            continue
        content = (made.folder / variant.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == variant.sha256
        assert len(content) == variant.file_bytes
        assert 0 < variant.wire_bytes <= variant.file_bytes
        assert variant.inputs[0].shape[1:] == (1, 12, 12)
        assert variant.params >= variant.nonzero_params > 0
        assert variant.macs > 0


def test_accuracy_is_that_of_the_written_file_in_its_real_runtime(made, bench):
    for name in ("int8.onnx", "int8.tflite", "pruned-int8.tflite"):
        variant = made[name]
        again = evaluate.accuracy(variant.format, made.content(name), bench.split("validate"), evaluate.top1)
        assert variant.accuracy == again


def test_pressing_makes_files_smaller_and_says_so(made):
    for format_ in ("onnx", "tflite"):
        original, int8, both = (made[f"{name}.{format_}"] for name in ("original", "int8", "pruned-int8"))
        assert original.file_bytes > 2.5 * int8.file_bytes
        assert int8.file_bytes > 1.5 * both.file_bytes
        assert original.macs == int8.macs > 1.8 * both.macs
        assert original.params > 1.8 * both.params
        assert (int8.verdict, both.verdict) == ("ok", "ok")
        assert [step.technique for step in both.steps] == ["prune", "quantize"]
        assert both.steps[0].measured.file_bytes > both.steps[1].measured.file_bytes == both.file_bytes


def test_a_broken_guard_keeps_the_best_so_far_and_says_why(made):
    greedy = made["greedy.onnx"]
    assert (greedy.verdict, greedy.kept_steps) == ("accuracy guard", 1)
    assert "step 2, prune: accuracy" in greedy.reason
    assert greedy.reason.endswith("kept as of step 1 of 3")
    assert len(greedy.steps) == 2
    assert greedy.file is not None
    assert greedy.accuracy == greedy.steps[0].measured.accuracy > greedy.steps[1].measured.accuracy + 0.1


def test_a_guard_broken_at_once_keeps_nothing(made):
    hopeless = made["hopeless.onnx"]
    assert (hopeless.verdict, hopeless.kept_steps, hopeless.file) == ("accuracy guard", 0, None)
    assert hopeless.accuracy is None
    assert hopeless.steps[0].measured.accuracy < 0.9


def test_a_step_that_did_nothing_is_named(made):
    idle = made["idle.onnx"]
    assert idle.verdict == "no-op"
    assert idle.reason.startswith("step 1, prune changed no weight")


def test_a_step_that_made_the_file_larger_is_named(press, tmp_path):
    wide = '{ technique = "distill", student = "compress_zoo:wide", epochs = 2 }'
    grown = press(HEAD + one(wide), tmp_path / "out")["v.onnx"]
    assert grown.verdict == "grew"
    assert grown.reason.startswith("step 1, distill made the file larger")
    assert grown.file is not None


def test_a_variant_that_fails_says_why_and_the_others_go_on(made):
    stuck = made["stuck.onnx"]
    assert (stuck.verdict, stuck.file) == ("failed", None)
    assert "export to onnx: " in stuck.reason
    assert "\n" not in stuck.reason
    assert made.variants.worked


def test_the_test_split_is_read_once_and_last(made):
    assert sorted(made.reads) == ["calibrate", "test", "train", "validate"]
    assert made.reads[-1] == "test"
    assert all(variant.test_accuracy is not None for variant in made.variants.variants if variant.file)


def test_nothing_but_the_report_can_read_the_test_split(bench):
    with pytest.raises(ValueError, match="not for guards or tuning"):
        bench.split("test")


def test_golden_vectors_hold_what_this_runtime_computes(made):
    for name in ("original.onnx", "int8.tflite", "int8.onnx"):
        variant = made[name]
        vectors = safetensors.numpy.load((made.folder / variant.golden.file).read_bytes())
        assert vectors["input.0"].shape == (8, 1, 12, 12)
        got = np.concatenate([o[0] for o in evaluate.predict(variant.format, made.content(name), vectors["input.0"])])
        assert np.array_equal(got, vectors["output.0"])
        assert 0 < variant.golden.rtol < 0.1
        assert variant.golden.atol < 0.2 * np.abs(got).max()


def test_a_model_without_finite_outputs_is_no_variant(press, tmp_path):
    made = press(HEAD.replace(":build", ":lost") + one('{ technique = "prune" }'), tmp_path / "out")
    assert {variant.verdict for variant in made.variants.variants} == {"failed"}
    assert made["original.onnx"].reason == "golden vectors: the file's outputs hold NaN or infinity"
    assert variants.read(tmp_path / "out") == made.variants


def test_weights_that_quantization_rounds_to_zero_are_counted_as_zeros(made):
    for name in ("int8.onnx", "int8.tflite"):
        content, int8 = made.content(name), made[name]
        stored = [w for w in exporters.get(int8.format).weights(content) if w.dtype == "int8" and len(w.shape) > 1]
        zeros = sum(weight.elements - weight.nonzero for weight in stored)
        assert zeros > 0
        assert int8.params - int8.nonzero_params == zeros


def test_golden_vectors_refuse_another_model(made):
    golden = made["int8.onnx"].golden
    vectors = safetensors.numpy.load((made.folder / golden.file).read_bytes())
    other = made.content("greedy.onnx")
    got = np.concatenate([o[0] for o in evaluate.predict("onnx", other, vectors["input.0"])])
    wanted = vectors["output.0"]
    assert np.abs(got - wanted).max() > golden.atol + golden.rtol * np.abs(wanted).max()


def test_the_evaluation_set_is_of_validate_never_of_test(made, bench):
    held = safetensors.numpy.load((made.folder / made.variants.evaluation.file).read_bytes())
    assert np.array_equal(held["x"], bench.split("validate").x)
    assert np.array_equal(held["y"], bench.split("validate").y)


def test_a_second_run_does_nothing_again_and_says_the_same(made, press):
    again = press(BOTH, made.folder)
    assert again.variants == made.variants
    worked = [line for line in again.doing if "epoch" in line or "calibrating" in line or "exporting" in line]
    assert len([line for line in made.doing if "epoch" in line]) > 3
    # What failed is tried again: nothing of it was kept but its training.
    assert worked == ["stuck.onnx, distill: exporting to onnx"]


def test_another_seed_or_other_data_is_not_taken_from_the_cache(press, tmp_path):
    step = '{ technique = "prune", ratio = 0.5, epochs = 1, samples = 128 }'
    first = press(HEAD + one(step), tmp_path / "out")
    other = press("seed = 7\n" + HEAD + one(step), tmp_path / "out")
    assert first["v.onnx"].sha256 != other["v.onnx"].sha256


def test_what_another_metric_decided_is_not_taken_from_the_cache(press, tmp_path):
    text = HEAD + one('{ technique = "prune", kind = "block", count = 1 }')
    press(text, tmp_path / "out")
    other = press("metric = 'compress_zoo:negative_error'\n" + text, tmp_path / "out")
    assert any("sensitivity of block" in doing for doing in other.doing)


def test_the_same_recipe_gives_the_same_bytes(made, press, tmp_path):
    again = press(PLAIN, tmp_path / "elsewhere")
    assert len(again.variants.variants) == 6
    for variant in again.variants.variants:
        assert made[f"{variant.name}.{variant.format}"].sha256 == variant.sha256, variant.name


def test_what_the_models_own_code_decides_is_not_taken_from_the_cache(press, tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    (folder / "scaled_model.py").write_text(
        "import compress_zoo, scaled_helper\n"
        "class Scaled(compress_zoo.Net):\n"
        "    def forward(self, x):\n"
        "        return scaled_helper.after(super().forward(x)) * self.scale\n"
        "def build():\n"
        "    model = Scaled()\n"
        "    model.load_state_dict(compress_zoo.build().state_dict())\n"
        "    model.scale = float(scaled_helper.SCALE)\n"
        "    return model\n"
    )
    text = HEAD.replace("compress_zoo:build", "scaled_model:build") + one(INT8)
    scores = []
    for helper in (
        "SCALE = 1\nafter = lambda x: x",
        "SCALE = -1\nafter = lambda x: x",
        "SCALE = -1\nafter = lambda x: -x",
    ):
        (folder / "scaled_helper.py").write_text(helper)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()
        for name in ("scaled_model", "scaled_helper"):
            sys.modules.pop(name, None)
        scores.append(press(text, tmp_path / "out")["original.onnx"].accuracy)
    assert scores[0] == scores[2] > 0.9
    assert scores[1] < 0.3


def test_variants_share_the_work_of_a_common_prefix(made):
    trained = {line.partition(":")[0] for line in made.doing if "epoch" in line}
    assert trained == {"pruned-int8.onnx, prune", "greedy.onnx, low_rank", "stuck.onnx, distill"}


def test_a_foreign_onnx_file_enters_at_the_graph_stage(made, press, tmp_path):
    (tmp_path / "foreign.onnx").write_bytes(made.content("original.onnx"))
    text = HEAD.replace("compress_zoo:build", "foreign.onnx") + one(INT8)
    foreign = press(text, tmp_path / "out", beside=tmp_path)["v.onnx"]
    assert foreign.verdict == "ok"
    assert foreign.macs is None
    assert foreign.params > 0
    assert str(tmp_path) not in (tmp_path / "out" / "variants.json").read_text()
    assert foreign.file_bytes < made["original.onnx"].file_bytes / 2
    again = count_file("onnx", (tmp_path / "out" / foreign.file).read_bytes())
    assert again.params == pytest.approx(foreign.params, rel=0.05)


def test_a_model_that_cannot_be_written_down_is_pressed_all_the_same_and_says_so(press, tmp_path):
    step = '{ technique = "prune", kind = "magnitude", ratio = 0.5, epochs = 1, samples = 64 }'
    text = HEAD.replace(":build", ":tied").replace("0.1", "1.0") + one(step) + one(step, INT8, name="w")
    made = press(text, tmp_path / "out")
    assert (made["v.onnx"].kept_steps, made["w.onnx"].kept_steps) == (1, 2)
    assert made["v.onnx"].steps[0].notes == ("this model cannot be kept between runs; the step will be done again",)
    assert len([line for line in made.doing if "epoch" in line]) == 1


def test_a_model_that_does_not_export_is_one_clear_line_per_variant(press, tmp_path):
    made = press(HEAD.replace(":build", ":unexportable") + one(INT8), tmp_path / "out")
    assert not made.variants.worked
    assert {variant.verdict for variant in made.variants.variants} == {"failed"}
    assert made["v.onnx"].reason.startswith("the original does not work in this format: export to onnx: ")
