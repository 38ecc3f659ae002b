"""The options and the training loop that every technique with fine-tuning has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from edgepress_host.press.training import (
    Batch,
    Epochs,
    LearningRate,
    Loss,
    SampleLimit,
    Schedule,
    Step,
    WeightDecay,
    fit,
)
from edgepress_host.technique import Technique, Workbench


class Trained(Technique, frozen=True):
    """A technique that trains: AdamW under a cosine schedule, on the train split with the recipe's augmentation.

    `samples` takes the first ones of the split; `bfloat16` runs forward passes in half precision, which is faster on
    processors with AVX512-BF16 or AMX.
    """

    epochs: Epochs = 0
    lr: LearningRate = 1e-3
    batch: Batch = 64
    samples: SampleLimit = None
    weight_decay: WeightDecay = 1e-4
    bfloat16: bool = False

    def pace(self) -> Schedule:
        """How long and how fast."""
        return Schedule(
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            samples=self.samples,
            weight_decay=self.weight_decay,
            bfloat16=self.bfloat16,
        )

    def train(
        self,
        model: nn.Module,
        bench: Workbench,
        loss: Loss,
        *,
        also: Sequence[nn.Module] = (),
        after_step: Callable[[Step], None] = lambda _: None,
    ) -> nn.Module:
        """Train `model` in place by these options (see training.fit). Raises Diverged."""
        samples = bench.split("train")
        return fit(model, samples, self.pace(), loss, bench, also=also, after_step=after_step)
