"""What `[data]`, `metric` and `[budget]` of a recipe change in a run."""

from __future__ import annotations

import compress_zoo
import pytest
from compress_recipes import HEAD, one
from edgepress_host import exporters
from edgepress_host.recipe import parse
from edgepress_protocol.errors import UsageError

TRAINED = '{ technique = "prune", kind = "magnitude", ratio = 0.5, epochs = 1, samples = 64 }'
INT8 = '{ technique = "quantize", mode = "static", samples = 4 }'
BROAD = HEAD.replace("max_drop = 0.1", "max_drop = 1000.0")


def augmented(name):
    return BROAD.replace("[guard]", f'augment = "data_zoo:{name}"\n[guard]')


def test_batches_of_training_are_augmented_by_the_users_own_function(press, tmp_path):
    plain, same, noisy = (
        press(text + one(TRAINED), tmp_path / "out")["v.onnx"].sha256
        for text in (BROAD, augmented("unchanged"), augmented("noisy"))
    )
    assert same == plain != noisy
    again = press(augmented("noisy") + one(TRAINED), tmp_path / "elsewhere")["v.onnx"]
    assert again.sha256 == noisy


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cropped", "data.augment: expected a tensor of shape (64, 1, 12, 12), got (64, 1, 12, 11)"),
        ("counted", "data.augment: expected a tensor of shape (64, 1, 12, 12), got int"),
        ("raising", "data.augment: it raised RuntimeError: no such picture"),
        ("absent", "data.augment"),
    ],
)
def test_an_augmentation_that_breaks_its_promise_is_one_line(name, line, press, tmp_path):
    with pytest.raises(UsageError) as error:
        press(augmented(name) + one(TRAINED), tmp_path / "out")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_splits_are_cut_to_the_samples_asked_for_and_the_budget_is_kept(press, tmp_path):
    text = BROAD.replace("[guard]", "validate_samples = 50\ntest_samples = 10\n[guard]")
    text = 'metric = "data_zoo:size"\n' + text + "[budget]\nmax_file_bytes = 123456\n"
    made = press(text + one(INT8), tmp_path / "out")
    assert (made["v.onnx"].accuracy, made["v.onnx"].test_accuracy) == (50, 10)
    assert made.variants.evaluation.samples == 50
    assert made.variants.metric == "data_zoo:size"
    assert made.variants.budget.max_file_bytes == 123456


@pytest.mark.parametrize(("key", "value"), [("validate_samples", 0), ("test_samples", -1)])
def test_a_limit_that_leaves_no_sample_is_refused(key, value):
    text = HEAD.replace("[guard]", f"{key} = {value}\n[guard]") + one(INT8)
    with pytest.raises(UsageError, match=rf"data\.{key}: expected a positive number, got {value}"):
        parse(text)


@pytest.mark.parametrize(
    ("loader", "line"),
    [
        ("load_nan_calibrate", "split 'calibrate': sample 7 holds NaN or infinity; clean the data first"),
        ("load_narrow_calibrate", "expected samples of shape "),
    ],
)
def test_calibration_data_that_cannot_be_used_is_one_line_that_names_the_split(loader, line, press, tmp_path):
    with pytest.raises(UsageError) as error:
        press(HEAD.replace("compress_zoo:load", f"data_zoo:{loader}") + one(INT8), tmp_path / "out")
    assert line in str(error.value)
    assert f"data.source = 'data_zoo:{loader}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_data_of_another_shape_than_the_model_takes_is_told_in_one_line(press, tmp_path):
    content = exporters.get("onnx").export(compress_zoo.build(), compress_zoo.load("calibrate")[0][:2])
    (tmp_path / "net.onnx").write_bytes(content)
    text = HEAD.replace("compress_zoo:load", "data_zoo:load_narrow").replace("compress_zoo:build", "net.onnx")
    with pytest.raises(UsageError, match=r"the model takes samples of shape \(1, 12, 12\), the data has \(1, 12, 9\)"):
        press(text + one(INT8), tmp_path / "out", beside=tmp_path)
