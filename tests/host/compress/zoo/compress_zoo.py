"""A user's own module, as a recipe names it: a small CNN, synthetic data, a metric, and things that go wrong."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

SIZES = {"train": 384, "calibrate": 48, "validate": 192, "test": 96}
CLASSES = 4


def load(split):
    """Stripes at one of four heights in noise; who asks for what is appended to $ZOO_LOG where that is set."""
    if log := os.environ.get("ZOO_LOG"):
        with Path(log).open("a") as file:
            file.write(f"{split}\n")
    rng = np.random.default_rng(sorted(SIZES).index(split))
    y = rng.integers(0, CLASSES, SIZES[split])
    x = rng.standard_normal((SIZES[split], 1, 12, 12)).astype(np.float32) * 0.7
    for index, label in enumerate(y):
        x[index, 0, 3 * label : 3 * label + 3] += 1
    return x, y.astype(np.int64)


def load_nan(split):
    x, y = load(split)
    x[3, 0, 0, 0] = np.nan
    return x, y


def load_nan_labels(split):
    x, y = load(split)
    y = y.astype(np.float32)
    y[5] = np.inf
    return x, y


def load_named_labels(split):
    x, y = load(split)
    return x, np.array([f"class {label}" for label in y])


def load_ragged(_split):
    return [[1.0, 2.0], [3.0]], [0, 1]


def load_uneven(split):
    x, y = load(split)
    return (x[..., 1:] if split == "validate" else x), y


def load_numbers(_split):
    return 5, 3


def leaving():
    raise SystemExit(3)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return torch.relu(x + self.mix(torch.relu(self.bn(self.conv(x)))))


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.block = Block(width)
        self.hidden = nn.Linear(width * 36, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x):
        x = self.block(torch.relu(self.stem(x)))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


@functools.cache
def _trained():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    log = os.environ.pop("ZOO_LOG", None)
    x, y = (torch.from_numpy(array) for array in load("train"))
    if log:
        os.environ["ZOO_LOG"] = log
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(4):
        for start in range(0, len(x), 64):
            optimiser.zero_grad()
            functional.cross_entropy(model(x[start : start + 64]), y[start : start + 64]).backward()
            optimiser.step()
    torch.set_num_threads(threads)
    return model.eval()


def build():
    return copy.deepcopy(_trained())


def wide():
    return Net(width=24)


def student():
    return Net(width=8)


def half():
    return Net().bfloat16()


def double():
    return Net().double()


class Tied(Net):
    """Two layers share one weight, which no list of sizes can say."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = self.block(torch.relu(self.stem(x)))
        x = torch.relu(self.hidden(x.flatten(1)))
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def tied():
    return Tied()


class Unexportable(Net):
    def forward(self, x):
        if float(x.sum()) > 0:
            x = x * 2
        return super().forward(x)


def unexportable():
    return Unexportable()


def raising():
    raise RuntimeError("the weights are elsewhere\nand more")


def not_a_module():
    return 7


number = 3


class Lost(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")


def lost():
    return Lost()


def no_number(_outputs, _labels):
    return None


def vandal(outputs, labels):
    labels += 1
    return 0.5


def negative_error(outputs, labels):
    return -float((outputs.argmax(1) != labels).mean())


def not_a_number(_outputs, _labels):
    """A metric without an answer."""
    return float("nan")
