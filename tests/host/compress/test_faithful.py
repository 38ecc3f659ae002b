from __future__ import annotations

import copy

import pytest
import torch
from compress_recipes import HEAD, SMALL
from edgepress_host import exporters, technique
from edgepress_host.press import faithful
from edgepress_host.press.strict import convert
from edgepress_host.press.workshop import Workshop
from edgepress_host.recipe import parse
from edgepress_host.technique import StepFailed


def started(model, format_, folder):
    recipe = parse(HEAD.replace("compress_zoo:build", model) + SMALL)
    return Workshop(recipe, folder, lambda _: None).start(format_)


@pytest.mark.parametrize(
    ("model", "format_"),
    [
        ("faithful_zoo:two_faced", "onnx"),
        ("faithful_zoo:two_faced", "tflite"),
        ("faithful_zoo:nearly", "onnx"),
        ("faithful_zoo:wrong_scores", "onnx"),
    ],
)
def test_a_file_that_answers_otherwise_is_no_file(model, format_, tmp_path):
    with pytest.raises(StepFailed) as caught:
        started(model, format_, tmp_path)
    line = str(caught.value)
    assert line.startswith(f"export to {format_}: output 0 differs from PyTorch's by ")
    assert " on 8 samples of calibrate; the converter gets this module wrong: " in line
    assert line.endswith(f"leave {format_} out of formats")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("drawing", "the module answers differently each time, also in evaluation mode"),
        ("beside", "output 0 differs .* the module's answer to a sample depends on the samples beside it"),
        ("summed", r"output 0 of the module has shape \(4,\) for one sample; expected \(1, …\)"),
    ],
)
def test_a_module_that_no_file_can_answer_as_is_told(model, line, tmp_path):
    with pytest.raises(StepFailed, match=line):
        started(f"faithful_zoo:{model}", "onnx", tmp_path)


def test_small_scores_beside_large_boxes_are_held_to_their_own_size(tmp_path):
    assert started("faithful_zoo:unsure", "onnx", tmp_path).graph


@pytest.mark.parametrize("format_", exporters.names())
def test_nearest_neighbours_are_the_same_ones(format_, tmp_path):
    assert len(exporters.get(format_).tensors(started("faithful_zoo:resized", format_, tmp_path).graph)[1]) == 4


def test_the_answers_are_compared_once_for_a_file_in_the_cache(tmp_path, monkeypatch):
    first = started("compress_zoo:build", "onnx", tmp_path)
    monkeypatch.setattr(faithful, "check", lambda *_: pytest.fail("compared again"))
    assert started("compress_zoo:build", "onnx", tmp_path).graph == first.graph


@pytest.fixture(scope="module")
def rounded(bench):
    """A module whose activations are rounded, and its file."""
    step = convert({"samples": 64, "bits": 4, "observe": 16}, technique.found()["qat"])
    module = step.apply_module(bench.original(), bench)
    return module, exporters.get("onnx").export(module, bench.calibration(2))


def test_another_side_of_a_rounding_is_no_mistake(rounded, bench):
    module, content = rounded
    assert faithful.check("onnx", content, module, bench.calibration(8)) < 1


def clip(module):
    """As if an activation's range were another's."""
    exporters.stepped(module)[1].scale *= 0.5


def shift(module):
    """As if every code of an activation were some steps off."""
    layer = exporters.stepped(module)[2]
    layer.register_forward_hook(lambda *given: given[2] + 6 * layer.scale)


def reverse(module):
    """As if the channels of a weight had changed places."""
    with torch.no_grad():
        weight = next(weight for weight in module.parameters() if weight.ndim == 4 and weight.shape[1] > 1)
        weight.copy_(weight.flip(0))


@pytest.mark.parametrize("mistake", [clip, shift, reverse])
def test_a_mistake_is_no_rounding(rounded, bench, mistake):
    module, content = rounded
    other = copy.deepcopy(module)
    mistake(other)
    with pytest.raises(faithful.Unfaithful, match="output 0 differs from PyTorch's"):
        faithful.check("onnx", content, other, bench.calibration(8))
