"""Caffe's LeNet-5: 20 and 50 convolutions of 5 by 5 with max-pooling, and dense layers of 500 and 10.

Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, in the shape of Caffe's example,
which Han, Mao, Dally, "Deep Compression", ICLR 2016, Table 3, compress. As is usual, a ReLU follows each convolution;
Caffe's own file has only the one after the dense layer.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from edgepress_models import checkpoint


def build(width: float = 1.0, classes: int = 10) -> nn.Module:
    """Return an untrained net, (N, 1, 28, 28) → logits (N, classes); at width 1 it has 431,080 parameters.

    Raises:
        ValueError: width is not above 0, or classes is below 1.
    """
    if width <= 0 or classes < 1:
        raise ValueError(f"expected width > 0 and classes ≥ 1, got width={width}, classes={classes}")
    first, second, hidden = round(20 * width), round(50 * width), round(500 * width)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, first, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense1=nn.Linear(second * 4 * 4, hidden),
            relu3=nn.ReLU(),
            head=nn.Linear(hidden, classes),
        )
    )


def pretrained() -> nn.Module:
    """Return the net with the weights that `python -m edgepress_models.train lenet5_caffe` measured, in eval mode."""
    return checkpoint.load(build(), "lenet5_caffe")


def example_input() -> torch.Tensor:
    """Return a batch of two blank images, (2, 1, 28, 28): two, so that an exporter does not fix the batch at one."""
    return torch.zeros(2, 1, 28, 28)
