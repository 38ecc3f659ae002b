"""DS-CNN: a convolution and four depthwise separable ones, for spoken words.

Source: Zhang, Suda, Lai, Chandra, "Hello Edge: Keyword Spotting on Microcontrollers", 2017, in the shape of MLPerf
Tiny's keyword spotting reference (Banbury et al., 2021): 64 channels, 49 frames of 10 coefficients.
"""

from __future__ import annotations

import torch
from torch import nn

from edgepress_models import checkpoint


class Separable(nn.Module):
    """A 3 by 3 convolution within each channel, then a 1 by 1 one across them, (N, C, H, W) → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features (N, C, H, W)."""
        x = self.relu1(self.bn1(self.depthwise(x)))
        out: torch.Tensor = self.relu2(self.bn2(self.pointwise(x)))
        return out


class DSCNN(nn.Module):
    """Input (N, 1, 49, 10) float32, frames by coefficients; output logits (N, classes)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, (10, 4), stride=2, padding=(5, 1), bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(*(Separable(width) for _ in range(4)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of features (N, 1, 49, 10)."""
        x = self.blocks(self.relu(self.bn(self.stem(x))))
        logits: torch.Tensor = self.head(self.dropout(self.flatten(self.pool(x))))
        return logits


def build(width: int = 64, classes: int = 10) -> nn.Module:
    """Return an untrained DS-CNN; at width 64 it has 23,050 parameters.

    Raises:
        ValueError: width or classes is below 1.
    """
    if width < 1 or classes < 1:
        raise ValueError(f"expected width ≥ 1 and classes ≥ 1, got width={width}, classes={classes}")
    return DSCNN(width, classes)


def narrow() -> nn.Module:
    """Return an untrained DS-CNN of half the width: a student for distillation."""
    return build(width=32)


def pretrained() -> nn.Module:
    """Return DS-CNN with the weights that `python -m edgepress_models.train dscnn` measured, in eval mode."""
    return checkpoint.load(build(), "dscnn")


def pretrained_unseen() -> nn.Module:
    """Return DS-CNN as it was trained without one speaker (see fsdd.load_unseen), in eval mode."""
    return checkpoint.load(build(), "dscnn_unseen")


def example_input() -> torch.Tensor:
    """Return a batch of two blank clips, (2, 1, 49, 10): two, so that an exporter does not fix the batch at one."""
    return torch.zeros(2, 1, 49, 10)
