"""What is trained on what, and how: one entry for each model of the zoo."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepress_models import (
    augment,
    denoiser,
    dscnn,
    gru,
    lenet5,
    lenet5_caffe,
    lenet300,
    lstm,
    resnet8,
    transformer,
    vgg16,
)

FASHION_MNIST = "edgepress_models.fashion_mnist:load"
MNIST = "edgepress_models.mnist:load"
SPOKEN_DIGITS = "edgepress_models.fsdd:load"
NOISY_FASHION_MNIST = "edgepress_models.noisy_fashion_mnist:load"
ACTIVITY = "edgepress_models.activity:load"
UNSEEN_SPEAKER = "edgepress_models.fsdd:load_unseen"


@dataclass(frozen=True)
class Metric:
    """What is measured: its name in the record, and the mean of a value for each sample; more is better."""

    name: str
    of_each: Callable[[Tensor, Tensor], Tensor]
    """(outputs (N, …), labels (N, …)) → a value for each sample, (N,)."""


ACCURACY = Metric("accuracy", lambda outputs, labels: (outputs.argmax(1) == labels).double())
NEG_MSE = Metric("neg_mse", lambda outputs, labels: -(outputs - labels).double().square().flatten(1).mean(1))


def nesterov(weights: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return gradient descent with Nesterov momentum."""
    return torch.optim.SGD(weights, learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def adamw(weights: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay, which recurrent nets and Transformers train better with."""
    return torch.optim.AdamW(weights, learning_rate, weight_decay=weight_decay)


@dataclass(frozen=True)
class Settings:
    """How one model is trained, under a one-cycle learning rate. `data` is `module:attr` of a loader of splits."""

    build: Callable[[], nn.Module]
    data: str
    epochs: int
    peak_learning_rate: float
    weight_decay: float
    batch: int = 256
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    optimizer: Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer] = nesterov
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    metric: Metric = ACCURACY

    def load(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels of a split. Raises what the loader raises."""
        module, _, attr = self.data.partition(":")
        loader: Any = getattr(importlib.import_module(module), attr)
        inputs, labels = map(torch.tensor, loader(split))
        return inputs, labels


ZOO = {
    "resnet8": Settings(resnet8.build, FASHION_MNIST, 18, 0.2, 5e-4, augment=augment.shift_and_flip),
    "lenet5": Settings(lenet5.build, FASHION_MNIST, 30, 0.06, 5e-4, augment=augment.shift_and_flip),
    "vgg16": Settings(vgg16.build, FASHION_MNIST, 20, 0.05, 5e-4, augment=augment.shift_and_flip),
    # Without augmentation, as the nets were that Deep Compression starts from.
    "lenet300": Settings(lenet300.build, MNIST, 60, 0.1, 5e-4, batch=128),
    "dscnn": Settings(dscnn.build, SPOKEN_DIGITS, 40, 0.1, 5e-4, batch=64, augment=augment.shift_in_time),
    "dscnn_unseen": Settings(dscnn.build, UNSEEN_SPEAKER, 20, 0.1, 5e-4, batch=64, augment=augment.shift_in_time),
    "lenet5_caffe": Settings(lenet5_caffe.build, MNIST, 10, 0.05, 5e-4, batch=128),
    "transformer": Settings(transformer.build, ACTIVITY, 25, 2e-3, 1e-2, batch=64, optimizer=adamw),
    "gru": Settings(gru.build, ACTIVITY, 40, 5e-3, 1e-2, batch=64, optimizer=adamw),
    "lstm": Settings(lstm.build, ACTIVITY, 20, 5e-3, 1e-2, batch=64, optimizer=adamw),
    "denoiser": Settings(
        denoiser.build, NOISY_FASHION_MNIST, 10, 3e-3, 0, optimizer=adamw, loss=functional.mse_loss, metric=NEG_MSE
    ),
}
