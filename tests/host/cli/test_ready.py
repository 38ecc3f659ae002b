"""A model file without a recipe: its tensors are read, its golden vectors computed by its own runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgepress_host.client import artifacts, ready
from edgepress_protocol.errors import UsageError
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

MODELS = Path(__file__).resolve().parents[2] / "fixtures" / "models"


def passing(path: Path, kind: int, shape: list[str | int]) -> Path:
    """A model that gives back what it gets."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "passing",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_an_onnx_file_is_read_with_its_free_batch(model: Callable[[Path, int], Path], tmp_path: Path) -> None:
    path = model(tmp_path / "small.onnx", 8)
    found = ready.read(path, tmp_path)
    assert (found.variant, found.format, found.inputs[0].shape) == ("small", "onnx", (None, 16))
    assert found.golden is not None
    vectors = load_file(found.golden.path)
    assert vectors["input.0"].shape == (8, 16)
    assert vectors["output.0"].shape == (8, 4)
    again = ready.read(path, tmp_path / "again")
    assert again.golden is not None
    assert found.golden.path.read_bytes() == again.golden.path.read_bytes()


@pytest.mark.parametrize("name", ["float", "int8"])
def test_a_tflite_file_is_read_with_its_quantization(name: str, tmp_path: Path) -> None:
    found = ready.read(MODELS / f"{name}.tflite", tmp_path)
    assert found.format == "tflite"
    assert found.golden is not None
    vectors = load_file(found.golden.path)
    assert vectors["input.0"].dtype == np.dtype(found.inputs[0].dtype)
    assert len(vectors["output.0"]) == ready.GOLDEN_SAMPLES


def test_samples_of_the_user_s_own_are_used_where_given(model: Callable[[Path, int], Path], tmp_path: Path) -> None:
    path = model(tmp_path / "small.onnx", 8)
    x = np.full((20, 16), 0.25, np.float32)
    save_file({"x": x, "y": np.zeros(20, np.int64)}, tmp_path / "own.safetensors")
    evaluation = artifacts.evaluation_file(tmp_path / "own.safetensors", "top1")
    found = ready.read(path, tmp_path, evaluation)
    assert found.golden is not None
    np.testing.assert_array_equal(load_file(found.golden.path)["input.0"], x[:8])


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL, TensorProto.FLOAT16])
def test_inputs_of_other_types_are_made_up(kind: int, tmp_path: Path) -> None:
    found = ready.read(passing(tmp_path / "m.onnx", kind, ["n", 5]), tmp_path)
    assert found.golden is not None
    vectors = load_file(found.golden.path)
    np.testing.assert_array_equal(vectors["input.0"], vectors["output.0"])


@pytest.mark.parametrize(("shape", "words"), [(["n", "length"], "free dimension"), ([4, 5], "takes a batch of 4")])
def test_what_cannot_be_made_up_is_one_line(shape: list[str | int], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        ready.read(passing(tmp_path / "m.onnx", TensorProto.FLOAT, shape), tmp_path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": np.zeros((2, 1), np.float32)}, "expected tensors x and y"),
        ({"x": np.zeros((2, 1), np.float32), "y": np.zeros(3, np.int64)}, "as many labels"),
        ({"x": np.zeros((0, 1), np.float32), "y": np.zeros(0, np.int64)}, "as many labels"),
    ],
)
def test_an_evaluation_set_that_does_not_fit_is_one_line(
    tensors: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "e.safetensors")
    with pytest.raises(UsageError, match=words):
        artifacts.evaluation_file(tmp_path / "e.safetensors", "top1")
