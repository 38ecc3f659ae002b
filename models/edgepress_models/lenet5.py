"""LeNet-5 with ReLU and max-pooling, for 28 by 28 images.

Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, section II.B.
"""

from __future__ import annotations

import torch
from torch import nn

from edgepress_models import checkpoint


class LeNet5(nn.Module):
    """Two 5 by 5 convolutions and three dense layers.

    Input (N, 1, 28, 28) float32, normalised by the loader; output logits (N, classes).
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        wide = 16 * width // 6
        self.conv1 = nn.Conv2d(1, width, 5, padding=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, wide, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.dense1 = nn.Linear(wide * 5 * 5, 120)
        self.relu3 = nn.ReLU()
        self.dense2 = nn.Linear(120, 84)
        self.relu4 = nn.ReLU()
        self.head = nn.Linear(84, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of images (N, 1, 28, 28)."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.flatten(self.pool2(self.relu2(self.conv2(x))))
        x = self.relu4(self.dense2(self.relu3(self.dense1(x))))
        logits: torch.Tensor = self.head(x)
        return logits


def build(width: int = 6, classes: int = 10) -> nn.Module:
    """Return an untrained LeNet-5 whose first layer has `width` channels; at width 6 it has 61,706 parameters.

    Raises:
        ValueError: width or classes is below 1.
    """
    if width < 1 or classes < 1:
        raise ValueError(f"expected width ≥ 1 and classes ≥ 1, got width={width}, classes={classes}")
    return LeNet5(width, classes)


def pretrained() -> nn.Module:
    """Return LeNet-5 with the weights that `python -m edgepress_models.train lenet5` measured, in eval mode."""
    return checkpoint.load(build(), "lenet5")


def example_input() -> torch.Tensor:
    """Return a batch of two blank images, (2, 1, 28, 28): two, so that an exporter does not fix the batch at one."""
    return torch.zeros(2, 1, 28, 28)
