"""What a learner can be asked to share with its guide, each a pure function: answers, features, relations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepress_host.press.soft import softened
from edgepress_host.techniques.distill.features import same_places

Likeness = Literal["soft", "mse", "cosine"]
"""How two answers are compared: as softened class scores, as values, or by their direction alone."""


def unlike(student: Tensor, teacher: Tensor, likeness: Likeness, temperature: float) -> Tensor:
    """How far two answers of one shape (N, …) are apart; classes are the last dimension."""
    match likeness:
        case "soft":
            return softened(student.flatten(0, -2), teacher.flatten(0, -2), temperature)
        case "mse":
            return functional.mse_loss(student, teacher)
        case "cosine":
            return 1 - functional.cosine_similarity(student.flatten(1), teacher.flatten(1)).mean()


def hint(student: Tensor, teacher: Tensor, regressor: nn.Module) -> Tensor:
    """Mean squared error of features (N, C, …), the student's through a regressor of their channels.

    FitNets (Romero et al. 2015, equation 3). Maps of different sizes are averaged down to the smaller one.
    """
    own, guide = same_places(student, teacher)
    return functional.mse_loss(regressor(own.movedim(1, -1)).movedim(-1, 1), guide)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of normalised attention maps, the sums of squares over the channels of (N, C, …).

    Zagoruyko, Komodakis 2017, equation 2 with p = 2, squared as in the authors' code; the mean over the batch.
    """
    own, guide = same_places(_attention_map(student), _attention_map(teacher))
    return (_unit(own) - _unit(guide)).square().sum(1).mean()


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the distances between all pairs of a batch, each side in units of its own mean.

    Relational knowledge distillation (Park et al. 2019, equations 5 to 7); features (N, …) of any widths.
    """
    return functional.smooth_l1_loss(_distances(student), _distances(teacher))


def angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the cosines of the angles that all triples of a batch make.

    Relational knowledge distillation (Park et al. 2019, equations 8 and 9); memory grows with the batch cubed.
    """
    return functional.smooth_l1_loss(_angles(student), _angles(teacher))


def _attention_map(features: Tensor) -> Tensor:
    """Return (N, 1, …): one channel, so that it can be averaged down."""
    return features.square().mean(1, keepdim=True)


def _unit(maps: Tensor) -> Tensor:
    return functional.normalize(maps.flatten(1), dim=1)


def _distances(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    squares = (rows[:, None] - rows[None]).square().sum(2)
    apart = ~torch.eye(len(rows), dtype=torch.bool)
    # The root has no slope at nought, where a sample meets itself or its twin.
    found = squares[apart].clamp(min=1e-12).sqrt()
    return found / found.mean().clamp(min=1e-12)


def _angles(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    directions = functional.normalize(rows[None] - rows[:, None], dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))
