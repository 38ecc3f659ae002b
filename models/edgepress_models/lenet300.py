"""LeNet-300-100: three dense layers with ReLU, for 28 by 28 images.

Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, section III.C.4, as used by Han,
Mao, Dally, "Deep Compression", ICLR 2016, Table 2.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from edgepress_models import checkpoint


def build(width: float = 1.0, classes: int = 10) -> nn.Module:
    """Return an untrained net, (N, 1, 28, 28) → logits (N, classes); at width 1 it has 266,610 parameters.

    Raises:
        ValueError: width is not above 0, or classes is below 1.
    """
    if width <= 0 or classes < 1:
        raise ValueError(f"expected width > 0 and classes ≥ 1, got width={width}, classes={classes}")
    first, second = round(300 * width), round(100 * width)
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            dense1=nn.Linear(784, first),
            relu1=nn.ReLU(),
            dense2=nn.Linear(first, second),
            relu2=nn.ReLU(),
            head=nn.Linear(second, classes),
        )
    )


def pretrained() -> nn.Module:
    """Return the net with the weights that `python -m edgepress_models.train lenet300` measured, in eval mode."""
    return checkpoint.load(build(), "lenet300")


def example_input() -> torch.Tensor:
    """Return a batch of two blank images, (2, 1, 28, 28): two, so that an exporter does not fix the batch at one."""
    return torch.zeros(2, 1, 28, 28)
