"""A denoising autoencoder of four dense layers, for 28 by 28 images.

Source: Vincent, Larochelle, Bengio, Manzagol, "Extracting and composing robust features with denoising autoencoders",
ICML 2008.
"""

from __future__ import annotations

import torch
from torch import nn

from edgepress_models import checkpoint

_PIXELS = 784


class Denoiser(nn.Module):
    """Input (N, 1, 28, 28) float32 with noise; output the image without it, of the same shape."""

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.encode1 = nn.Linear(_PIXELS, width)
        self.relu1 = nn.ReLU()
        self.encode2 = nn.Linear(width, code)
        self.relu2 = nn.ReLU()
        self.decode1 = nn.Linear(code, width)
        self.relu3 = nn.ReLU()
        self.decode2 = nn.Linear(width, _PIXELS)
        self.unflatten = nn.Unflatten(1, (1, 28, 28))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the images (N, 1, 28, 28) without noise."""
        code = self.relu2(self.encode2(self.relu1(self.encode1(self.flatten(x)))))
        clean: torch.Tensor = self.unflatten(self.decode2(self.relu3(self.decode1(code))))
        return clean


def build(width: int = 160, code: int = 64) -> nn.Module:
    """Return an untrained autoencoder; by default it has 272,528 parameters.

    Raises:
        ValueError: width or code is below 1.
    """
    if width < 1 or code < 1:
        raise ValueError(f"expected width ≥ 1 and code ≥ 1, got width={width}, code={code}")
    return Denoiser(width, code)


def pretrained() -> nn.Module:
    """Return the autoencoder with the weights that `python -m edgepress_models.train denoiser` measured."""
    return checkpoint.load(build(), "denoiser")


def example_input() -> torch.Tensor:
    """Return a batch of two blank images, (2, 1, 28, 28): two, so that an exporter does not fix the batch at one."""
    return torch.zeros(2, 1, 28, 28)
