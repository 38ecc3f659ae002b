"""VGG-16 with batch normalisation at half width, for one input channel: a net with far more weights than it needs.

Source: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
configuration D: thirteen 3 by 3 convolutions in five blocks and three dense layers.
"""

from __future__ import annotations

import torch
from torch import nn

# Output channels at width 1; "pool" halves height and width. 28 pixels halve four times, to 1.
_LAYERS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
_DENSE = 4096


class Vgg16(nn.Module):
    """Convolutions (`features`) and dense layers (`classifier`), (N, 1, 28, 28) → logits (N, classes)."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for step in _LAYERS:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2))
                continue
            wide = round(step * width)
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        hidden = round(_DENSE * width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of images (N, 1, 28, 28)."""
        logits: torch.Tensor = self.classifier(self.features(x))
        return logits


def build(width: float = 0.5, classes: int = 10) -> nn.Module:
    """Return an untrained VGG-16-BN; at width 0.5 it has 8,424,874 parameters.

    Raises:
        ValueError: width is not above 0, or classes is below 1.
    """
    if width <= 0 or classes < 1:
        raise ValueError(f"expected width > 0 and classes ≥ 1, got width={width}, classes={classes}")
    return Vgg16(width, classes)


def example_input() -> torch.Tensor:
    """Return a batch of two blank images, (2, 1, 28, 28): two, so that an exporter does not fix the batch at one."""
    return torch.zeros(2, 1, 28, 28)
