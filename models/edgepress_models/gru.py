"""A net with one GRU layer for windows of sensor values.

Source: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
EMNLP 2014.
"""

from __future__ import annotations

from torch import nn

from edgepress_models import activity, checkpoint, recurrent
from edgepress_models.recurrent import example_input

__all__ = ["build", "example_input", "pretrained"]


def build(width: int = 64, classes: int = activity.CLASSES) -> nn.Module:
    """Return an untrained net, (N, 128, 6) → logits (N, classes); at width 64 it has 17,735 parameters.

    Raises:
        ValueError: width or classes is below 1.
    """
    return recurrent.build(nn.GRU, width, classes)


def pretrained() -> nn.Module:
    """Return the net with the weights that `python -m edgepress_models.train gru` measured, in eval mode."""
    return checkpoint.load(build(), "gru")
