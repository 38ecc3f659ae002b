from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from edgepress_models import checkpoint, lenet5, resnet8, sources, training, zoo
from torch import nn

PARAMETERS = {
    "resnet8": 77_562,
    "lenet5": 61_706,
    "lenet300": 266_610,
    "lenet5_caffe": 431_080,
    "dscnn": 23_050,
    "vgg16": 8_424_874,
    "transformer": 71_175,
    "gru": 17_735,
    "lstm": 23_495,
    "denoiser": 272_528,
}
OUTPUTS = {"transformer": (7,), "gru": (7,), "lstm": (7,), "denoiser": (1, 28, 28)}
# What the shipped weights reach on the test split, at least.
FLOORS = {
    "resnet8": 0.92,
    "lenet5": 0.90,
    "lenet300": 1 - 0.0164,
    "dscnn": 0.98,
    "gru": 0.85,
    "lstm": 0.78,
    "dscnn_unseen": 0.54,
    "denoiser": -0.11,
    "transformer": 0.81,
    "lenet5_caffe": 1 - 0.0080,
}
PAGE = Path(__file__).parents[2] / "docs/how-to/train-the-zoo.md"
WEIGHTS = Path(checkpoint.__file__).parent / "weights"


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"edgepress_models.{name}")


def pretrained(name: str) -> nn.Module:
    base, unseen, _ = name.partition("_unseen")
    model: nn.Module = getattr(module_of(base), f"pretrained{unseen}")()
    return model


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_shape_is_the_published_one(name: str) -> None:
    module = module_of(name)
    model = module.build().eval()
    example = module.example_input()
    outputs = OUTPUTS.get(name, (10,))
    assert parameters(model) == PARAMETERS[name]
    assert model(example).shape == (2, *outputs)
    assert model(torch.zeros(7, *example.shape[1:])).shape == (7, *outputs)


@pytest.mark.parametrize("module", [resnet8, lenet5])
def test_width_and_classes_are_the_callers(module: ModuleType) -> None:
    assert module.build(width=12, classes=3)(module.example_input()).shape == (2, 3)
    assert parameters(module.build(width=4)) < parameters(module.build(width=8))
    with pytest.raises(ValueError, match="got width=0"):
        module.build(width=0)


def test_the_student_is_half_as_wide() -> None:
    assert parameters(resnet8.narrow()) == parameters(resnet8.build(width=8))


def test_every_model_ships_what_may_be_shipped() -> None:
    assert {path.stem for path in WEIGHTS.glob("*.safetensors")} == set(FLOORS)
    assert {path.stem for path in WEIGHTS.glob("*.json")} == set(FLOORS) | {"vgg16"}
    assert all(path.stat().st_size < 2_000_000 for path in WEIGHTS.glob("*.safetensors"))
    assert set(FLOORS) | {"vgg16"} == set(zoo.ZOO)


@pytest.mark.parametrize("name", FLOORS)
def test_the_shipped_weights_are_those_of_the_record(name: str) -> None:
    model, record = pretrained(name), checkpoint.record(name)
    settings = zoo.ZOO[name]
    assert not model.training
    assert record["params"] == parameters(model) == PARAMETERS[name.partition("_unseen")[0]]
    assert record["data"] == settings.data
    assert record[f"test_{settings.metric.name}"] >= FLOORS[name]


@pytest.mark.parametrize("name", FLOORS)
@pytest.mark.parametrize("split", ["validate", "test"])
def test_the_shipped_weights_reach_what_their_record_says(name: str, split: str) -> None:
    settings = zoo.ZOO[name]
    try:
        settings.load(split)
    except sources.DataMissing as missing:
        pytest.skip(str(missing))
    reached = training.measure(pretrained(name), settings, split)
    assert reached == pytest.approx(checkpoint.record(name)[f"{split}_{settings.metric.name}"], abs=0.001)


def test_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        checkpoint.load(resnet8.narrow(), "resnet8")


@pytest.mark.parametrize("name", [*FLOORS, "vgg16"])
def test_the_page_says_what_the_record_says(name: str) -> None:
    record, metric = checkpoint.record(name), zoo.ZOO[name].metric.name
    form = ".2%" if metric == "accuracy" else ".4f"
    path = WEIGHTS / f"{name}.safetensors"
    file = f"{path.stat().st_size:,} bytes" if path.exists() else "not shipped"
    figures = (
        f"| {record['params']:,} | {record[f'validate_{metric}']:{form}} | {record[f'test_{metric}']:{form}} | {file} |"
    )
    assert figures in PAGE.read_text()
