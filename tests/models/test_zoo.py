from __future__ import annotations

from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest
import torch
from edgepress_models import checkpoint, lenet5, resnet8, training, zoo
from torch import nn

ZOO = {"resnet8": (resnet8, 77_562, 0.92), "lenet5": (lenet5, 61_706, 0.90)}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_the_shape_is_the_published_one(name: str) -> None:
    module, expected, _ = ZOO[name]
    model = module.build()
    assert parameters(model) == expected
    assert module.example_input().shape == (2, 1, 28, 28)
    assert model(module.example_input()).shape == (2, 10)
    assert model(torch.zeros(7, 1, 28, 28)).shape == (7, 10)


@pytest.mark.parametrize("module", [resnet8, lenet5])
def test_width_and_classes_are_the_callers(module: ModuleType) -> None:
    assert module.build(width=12, classes=3)(module.example_input()).shape == (2, 3)
    assert parameters(module.build(width=4)) < parameters(module.build(width=8))
    with pytest.raises(ValueError, match="got width=0"):
        module.build(width=0)


def test_the_student_is_half_as_wide() -> None:
    assert parameters(resnet8.narrow()) == parameters(resnet8.build(width=8))


@pytest.mark.parametrize("name", ZOO)
def test_the_shipped_weights_reach_what_their_record_says(name: str) -> None:
    module, expected, floor = ZOO[name]
    model = module.pretrained()
    record = checkpoint.record(name)
    assert not model.training
    assert record["params"] == expected
    assert record["test_accuracy"] >= floor
    assert training.measure(model, zoo.ZOO[name], "test") == pytest.approx(record["test_accuracy"], abs=0.001)
    assert training.measure(model, zoo.ZOO[name], "validate") == pytest.approx(record["validate_accuracy"], abs=0.001)


def test_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        checkpoint.load(resnet8.narrow(), "resnet8")


@pytest.mark.parametrize("name", ZOO)
def test_the_page_says_what_the_record_says(name: str) -> None:
    record = checkpoint.record(name)
    weights_bytes = len((resources.files("edgepress_models") / "weights" / f"{name}.safetensors").read_bytes())
    page = (Path(__file__).parents[2] / "docs/how-to/train-the-zoo.md").read_text()
    figures = (
        f"| {record['params']:,} | {record['validate_accuracy']:.2%} | {record['test_accuracy']:.2%} "
        f"| {weights_bytes:,} bytes |"
    )
    assert figures in page
