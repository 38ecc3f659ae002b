"""Networks for distillation: several outputs, values as labels, sequences, and one that cannot start anew."""

from __future__ import annotations

import functools

import numpy as np
import torch
from compress_zoo import CLASSES, Net, build, load
from torch import nn


class Detector(Net):
    """Scores and boxes, by name."""

    def __init__(self, width=16, boxes=4):
        super().__init__(width)
        self.boxes = nn.Linear(24, boxes)

    def forward(self, x):
        x = self.block(torch.relu(self.stem(x)))
        x = torch.relu(self.hidden(x.flatten(1)))
        return {"scores": self.head(x), "boxes": self.boxes(x)}


def detector():
    """A teacher: the trained net's weights, and boxes by chance, the same ones in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Detector()
    model.load_state_dict(build().state_dict(), strict=False)
    return model.eval()


def small_detector():
    return Detector(8)


def other_boxes():
    return Detector(8, boxes=6)


class Line(nn.Module):
    """Values (N, 3) from images; layers named unlike those of the net."""

    def __init__(self, width):
        super().__init__()
        self.entry = nn.Conv2d(1, width, 3, stride=4, padding=1)
        self.body = nn.Linear(width * 9, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.relu(self.body(torch.relu(self.entry(x)).flatten(1))))


def line():
    return Line(12)


def short_line():
    return Line(6)


def load_values(split):
    """Three linear measurements of each image as labels."""
    x, _ = load(split)
    weights = np.random.default_rng(9).standard_normal((144, 3)).astype(np.float32) / 12
    return x, x.reshape(len(x), -1) @ weights


class Sequence(nn.Module):
    """A convolution over lines (N, C, L), then a recurrent layer (N, L, H)."""

    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv1d(12, width, 3, padding=1)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        found, _ = self.rnn(torch.relu(self.conv(x.flatten(1, 2))).transpose(1, 2))
        return self.head(found[:, -1])


def sequence():
    return Sequence()


def wide_sequence():
    return Sequence(10)


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(144, CLASSES))

    def forward(self, x):
        return x.flatten(1) @ self.scale


def fixed():
    return Fixed()


class Half(nn.Module):
    """A net of the user's own whose first part alone can start anew."""

    def __init__(self):
        super().__init__()
        self.net = Net(8)
        self.shift = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x):
        return self.net(x) + self.shift


def half():
    return Half()


def nan_from_step(number):
    """An augmentation that spoils every batch from that one on."""
    calls = 0

    def augment(x, _generator):
        nonlocal calls
        calls += 1
        return x if calls <= number else x * float("nan")

    return augment


@functools.cache
def anything():
    """The same untrained student for all who compare trainings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Net(8).eval()
