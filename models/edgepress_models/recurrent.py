"""A recurrent layer and a dense head for windows of sensor values; see gru and lstm."""

from __future__ import annotations

import torch
from torch import nn

from edgepress_models import activity

# Four samples of all channels are one step: an unrolled export stays small, and gradients reach the window's start.
STEP_SAMPLES = 4
STEPS = activity.WINDOW_SAMPLES // STEP_SAMPLES


class Recurrent(nn.Module):
    """Input (N, 128, 6) float32, normalised by the loader; output logits (N, classes)."""

    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM], width: int, classes: int) -> None:
        super().__init__()
        self.recurrent = cell(STEP_SAMPLES * activity.CHANNELS, width, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of windows (N, 128, 6), from the state after the last step."""
        states, _ = self.recurrent(x.reshape(-1, STEPS, STEP_SAMPLES * activity.CHANNELS))
        logits: torch.Tensor = self.head(self.dropout(states[:, -1]))
        return logits


def build(cell: type[nn.GRU] | type[nn.LSTM], width: int, classes: int) -> nn.Module:
    """Return an untrained net.

    Raises:
        ValueError: width or classes is below 1.
    """
    if width < 1 or classes < 1:
        raise ValueError(f"expected width ≥ 1 and classes ≥ 1, got width={width}, classes={classes}")
    return Recurrent(cell, width, classes)


def example_input() -> torch.Tensor:
    """Return a batch of two blank windows, (2, 128, 6): two, so that an exporter does not fix the batch at one."""
    return torch.zeros(2, activity.WINDOW_SAMPLES, activity.CHANNELS)
