"""What each layer is to lose."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class Wanted(NamedTuple):
    """Ratio and threshold of a layer that is not skipped; `own` where an override gave the layer one by itself."""

    ratio: float
    threshold: float | None
    own: bool


def share_of(ratio: float, share: float) -> float:
    """Return the ratio after a share of the way: each round takes the same part of what is left.

    >>> [round(share_of(0.75, share), 2) for share in (0.0, 0.5, 1.0)]
    [0.0, 0.5, 0.75]
    """
    return ratio if share >= 1 else 1 - (1 - ratio) ** share
