"""The nets of the zoo in narrow builds: shapes, what they learn, and their files in the real runtimes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from edgepress_host import evaluate, exporters
from edgepress_models import (
    denoiser,
    dscnn,
    gru,
    lenet5_caffe,
    lenet300,
    lstm,
    training,
    transformer,
    zoo,
)
from rich.progress import Progress
from torch import nn

NARROW = {
    dscnn: {"width": 8},
    transformer: {"width": 16, "num_heads": 2},
    gru: {"width": 8},
    lstm: {"width": 8},
    denoiser: {"width": 8, "code": 4},
    lenet300: {"width": 0.05},
    lenet5_caffe: {"width": 0.2},
}
NAMES = [module.__name__.rpartition(".")[2] for module in NARROW]


@pytest.mark.parametrize("module", NARROW, ids=NAMES)
def test_any_batch_goes_through_and_samples_do_not_mix(module: ModuleType) -> None:
    torch.manual_seed(0)
    model = module.build(**NARROW[module]).eval()
    x = torch.randn(5, *module.example_input().shape[1:])
    together = model(x)
    assert len(together) == 5
    assert torch.allclose(together, torch.cat([model(one[None]) for one in x]), atol=1e-5)
    assert torch.unique(together, dim=0).shape == together.shape


@pytest.mark.parametrize("module", NARROW, ids=NAMES)
def test_a_width_that_cannot_be_is_refused(module: ModuleType) -> None:
    with pytest.raises(ValueError, match="got width=0"):
        module.build(width=0)


def test_heads_share_the_width() -> None:
    with pytest.raises(ValueError, match="width a multiple of num_heads"):
        transformer.build(width=64, num_heads=5)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own = transformer.Attention(16, num_heads=4)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([own.q.weight, own.k.weight, own.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([own.q.bias, own.k.bias, own.v.bias]))
        theirs.out_proj.load_state_dict(own.out.state_dict())
    x = torch.randn(3, 7, 16)
    assert torch.allclose(own(x), theirs(x, x, x, need_weights=False)[0], atol=1e-5)


@pytest.mark.parametrize("format_", ["onnx", "tflite"])
@pytest.mark.parametrize("module", [dscnn, transformer, gru, lstm, denoiser], ids=lambda module: module.__name__)
def test_the_exported_file_computes_the_same(module: ModuleType, format_: str) -> None:
    torch.manual_seed(0)
    model = module.build(**NARROW[module]).eval()
    example = module.example_input().numpy()
    x = np.random.default_rng(0).standard_normal((3, *example.shape[1:]), np.float32)
    content = exporters.get(format_).export(model, example)
    found = np.concatenate([outputs[0] for outputs in evaluate.predict(format_, content, x)])
    assert np.allclose(found, model(torch.tensor(x)).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("module", NARROW, ids=NAMES)
def test_its_training_learns(module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A few steps of the model's own loss and optimiser tell two classes, or two images, apart under little noise."""
    name = module.__name__.rpartition(".")[2]
    settings = dataclasses.replace(zoo.ZOO[name], build=lambda: module.build(**NARROW[module]), batch=16)
    chance = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 2, (64,), generator=chance)
    clean = torch.randn(2, *module.example_input().shape[1:], generator=chance)[kinds]
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=chance)
    labels = clean if settings.metric is zoo.NEG_MSE else kinds
    monkeypatch.setattr(zoo.Settings, "load", lambda self, split: (noisy, labels))
    options = training.Options(epochs=40 if settings.metric is zoo.NEG_MSE else 8, seed=0, bfloat16=False)
    trained = training.train(settings, options, Progress(disable=True), tmp_path / "resume")
    assert training.measure(trained.model, settings, "test") == trained.validate
    assert trained.validate > (-0.5 if settings.metric is zoo.NEG_MSE else 0.9)
