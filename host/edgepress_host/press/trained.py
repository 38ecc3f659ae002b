"""The options and the training loop that every technique with fine-tuning has, and a teacher that some can have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from edgepress_protocol.errors import UsageError
from torch import nn

from edgepress_host.press.loading import load_module
from edgepress_host.press.sensitivity import outputs_of
from edgepress_host.press.soft import taught
from edgepress_host.press.strict import changed
from edgepress_host.press.structure import digest
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
from edgepress_host.technique import StepFailed, Technique, Workbench


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

    def recovers(self) -> bool:
        """Tell whether the step trains."""
        return self.epochs > 0

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
    """A technique whose training may go by a teacher's answers, too: the original's, or those of a `module:attr`.

    With `teacher` the loss is alpha · (soft targets at `temperature`) + (1 - alpha) · labels; see `press.soft`.
    """

    teacher: bool | str = False
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

    def extra_key(self) -> str:
        """Return the digest of a teacher of the user's own."""
        return digest(_teacher(self.teacher)) if isinstance(self.teacher, str) else ""

    def lesson(self, bench: Workbench) -> Loss:
        """Return what training is to make small. Raises StepFailed for a teacher whose answers have another shape."""
        if not self.teacher:
            return supervised
        teacher = bench.original()
        if isinstance(self.teacher, str):
            teacher = _teacher(self.teacher)
            own, other = (outputs_of(one, bench.calibration(2)).shape[1:] for one in (bench.original(), teacher))
            if own != other:
                raise StepFailed(
                    f"teacher: {self.teacher} gives outputs of shape {other}, the model {own}; they have to agree"
                )
        return taught(
            teacher,
            bench.split("train").first(self.samples),
            augmented=bench.augment is not None,
            temperature=self.temperature,
            alpha=self.alpha,
        )


def _teacher(reference: str) -> nn.Module:
    return load_module(reference, key="teacher")
