"""The options and the training loop that every technique with fine-tuning has, and a teacher that some can have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.soft import taught
from edgepress_host.press.strict import changed
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
    supervised,
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

    def check(self) -> None:
        """Raise UsageError for an option of training where nothing is trained."""
        if self.epochs:
            return
        for name in Trained.__struct_fields__:
            if name != "epochs" and name in changed(self):
                raise UsageError(f"{name}: does nothing with epochs = 0; set epochs, or leave {name} out")

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


class Taught(Trained, frozen=True):
    """A technique whose training may go by the original's answers, too.

    With `teacher` the loss is alpha · (soft targets at `temperature`) + (1 - alpha) · labels; see `press.soft`.
    """

    teacher: bool = False
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] = 4.0
    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9

    def check(self) -> None:
        """Raise UsageError for a teacher without lessons, and for lessons without a teacher."""
        super().check()
        if self.teacher and not self.epochs:
            raise UsageError("teacher: it teaches while the step trains; set epochs, or leave teacher out")
        for name in ("temperature", "alpha"):
            if name in changed(self) and not self.teacher:
                raise UsageError(f"{name}: it is the teacher's; set teacher = true, or leave {name} out")

    def lesson(self, bench: Workbench) -> Loss:
        """Return what training is to make small."""
        if not self.teacher:
            return supervised
        return taught(
            bench.original(),
            bench.split("train").first(self.samples),
            augmented=bench.augment is not None,
            temperature=self.temperature,
            alpha=self.alpha,
        )
