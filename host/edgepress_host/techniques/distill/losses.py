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
    squares, _ = _squares(_products(features))
    found = squares[~torch.eye(len(squares), dtype=torch.bool)].sqrt()
    return found / found.mean()


def _angles(features: Tensor) -> Tensor:
    """Return the cosine of the angle at j between i and k, shape (j, i, k), from products of pairs alone."""
    products = _products(features)
    squares, apart = _squares(products)
    inverse = apart * squares.rsqrt()
    at = products.diagonal()[:, None, None]
    inner = products[None] - products[:, :, None] - products[:, None, :] + at
    return inner * inverse[:, :, None] * inverse[:, None, :]


def _products(features: Tensor) -> Tensor:
    """Inner products of all pairs, (N, N), from the batch's middle, where the least is lost to rounding."""
    rows = features.flatten(1)
    rows = rows - rows.mean(0)
    return rows @ rows.T


def _squares(products: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances of all pairs, and who is apart by more than rounding: a sample is not, from itself or a twin.

    Nought is replaced by a little, since a root has no slope there.
    """
    sizes = products.diagonal()
    both = sizes[:, None] + sizes[None]
    squares = both - 2 * products
    return squares.clamp(min=1e-12), squares > 1e-6 * both
