"""ResNet-8 in the shape of MLPerf Tiny's image classification reference, for one input channel.

Source: Banbury et al., "MLPerf Tiny Benchmark", 2021: a CIFAR-10 ResNet (He et al., 2016) of three stacks.
"""

from __future__ import annotations

import torch
from torch import nn

from edgepress_models import checkpoint


class Residual(nn.Module):
    """Two 3 by 3 convolutions beside a shortcut, (N, C_in, H, W) → (N, C_out, H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same_shape = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.relu2(y + self.shortcut(x))
        return out


class ResNet8(nn.Module):
    """A stem, three residual stacks of width, 2·width and 4·width channels, and a dense head.

    Input (N, 1, 28, 28) float32, normalised by the loader; output logits (N, classes).
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stack1 = Residual(width, width, stride=1)
        self.stack2 = Residual(width, 2 * width, stride=2)
        self.stack3 = Residual(2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of images (N, 1, 28, 28)."""
        x = self.relu(self.bn(self.stem(x)))
        x = self.stack3(self.stack2(self.stack1(x)))
        logits: torch.Tensor = self.head(self.flatten(self.pool(x)))
        return logits


def build(width: int = 16, classes: int = 10) -> nn.Module:
    """Return an untrained ResNet-8; at width 16 it has 77,562 parameters.

    Raises:
        ValueError: width or classes is below 1.
    """
    if width < 1 or classes < 1:
        raise ValueError(f"expected width ≥ 1 and classes ≥ 1, got width={width}, classes={classes}")
    return ResNet8(width, classes)


def narrow() -> nn.Module:
    """Return an untrained ResNet-8 of half the width: a student for distillation."""
    return build(width=8)


def pretrained() -> nn.Module:
    """Return ResNet-8 with the weights that `python -m edgepress_models.train resnet8` measured, in eval mode."""
    return checkpoint.load(build(), "resnet8")


def example_input() -> torch.Tensor:
    """Return a batch of two blank images, (2, 1, 28, 28): two, so that an exporter does not fix the batch at one."""
    return torch.zeros(2, 1, 28, 28)
