"""Response-based distillation: a student learns the softened outputs of the original model."""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepress_host.press.loading import load_module
from edgepress_host.press.structure import digest
from edgepress_host.press.trained import Trained
from edgepress_host.press.training import Step, holds_classes, supervised
from edgepress_host.technique import Stage, StepFailed, Workbench


class Distill(Trained, frozen=True):
    """Train the model as pressed so far, or `student` (`module:attr`), to answer as the original does.

    Loss: alpha · T² · KL(teacher / T ‖ student / T) + (1 - alpha) · cross-entropy with the labels. T² keeps the
    gradient of the soft part at the size of the hard one (Hinton, Vinyals, Dean 2015, section 2).
    """

    stage: ClassVar[Stage] = "module"
    reads: ClassVar[tuple[str, ...]] = ("train",)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"samples": 64}, {"samples": 64, "alpha": 0.5, "epochs": 2})

    student: str | None = None
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] = 4.0
    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1

    def extra_key(self) -> str:
        """Return the digest of the student's own weights."""
        return "" if self.student is None else digest(self._student())

    def base(self) -> str | None:
        """Return the student, whose structure the result has."""
        return self.student

    def apply_module(self, model: nn.Module, bench: Workbench) -> nn.Module:
        """Return a trained copy."""
        student = copy.deepcopy(model if self.student is None else self._student()).requires_grad_(True)
        samples = bench.split("train").first(self.samples)
        if not holds_classes(samples.y):
            raise StepFailed("distill softens class scores, and these labels are no classes")
        teacher = copy.deepcopy(bench.original()).eval()

        def loss(outputs: Tensor, step: Step) -> Tensor:
            with torch.no_grad():
                answers = teacher(step.x)
            soft = softened(outputs, answers, self.temperature)
            return self.alpha * soft + (1 - self.alpha) * supervised(outputs, step)

        return self.train(student, bench, loss)

    def _student(self) -> nn.Module:
        assert self.student is not None
        return load_module(self.student, key="distill.student")


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² times the Kullback-Leibler divergence of softened class scores, both (N, classes)."""
    return temperature**2 * functional.kl_div(
        torch.log_softmax(student / temperature, dim=-1),
        torch.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
