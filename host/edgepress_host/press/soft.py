"""Soft targets: a model learns what another one answers, beside the labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepress_host.press.data import Samples
from edgepress_host.press.sensitivity import outputs_of
from edgepress_host.press.training import Loss, Step, first_output, holds_classes, supervised


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² times the Kullback-Leibler divergence of softened class scores, both (N, classes).

    T² keeps the gradient at the size that it has with labels (Hinton, Vinyals, Dean 2015, section 2).
    """
    return temperature**2 * functional.kl_div(
        torch.log_softmax(student / temperature, dim=-1),
        torch.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def taught(teacher: nn.Module, samples: Samples, *, augmented: bool, temperature: float, alpha: float) -> Loss:
    """Return the loss alpha · (difference from the teacher's answers) + (1 - alpha) · (difference from the labels).

    The difference is `softened` where labels are classes, else the mean squared error. `samples` are those that are
    trained on: where they are not `augmented`, the teacher answers each of them once, beforehand.
    """
    wise = copy.deepcopy(teacher).eval()
    classes = holds_classes(samples.y)
    known = None if augmented else torch.from_numpy(outputs_of(wise, samples.x))

    def loss(outputs: Any, step: Step) -> Tensor:
        if known is None:
            with torch.no_grad():
                answers = first_output(wise(step.x))
        else:
            answers = known[step.indices]
        found = first_output(outputs)
        soft = softened(found, answers, temperature) if classes else functional.mse_loss(found, answers)
        return alpha * soft + (1 - alpha) * supervised(outputs, step)

    return loss
