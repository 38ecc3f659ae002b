"""A net with one LSTM layer for windows of sensor values.

Source: Hochreiter, Schmidhuber, "Long short-term memory", Neural Computation, 1997.
"""

from __future__ import annotations

from torch import nn

from edgepress_models import activity, checkpoint, recurrent
from edgepress_models.recurrent import example_input

__all__ = ["build", "example_input", "pretrained"]


def build(width: int = 64, classes: int = activity.CLASSES) -> nn.Module:
    """Return an untrained net, (N, 128, 6) → logits (N, classes); at width 64 it has 23,495 parameters.

    Raises:
        ValueError: width or classes is below 1.
    """
    return recurrent.build(nn.LSTM, width, classes)


def pretrained() -> nn.Module:
    """Return the net with the weights that `python -m edgepress_models.train lstm` measured, in eval mode."""
    return checkpoint.load(build(), "lstm")
