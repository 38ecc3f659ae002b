"""Models that no file can answer as, or that a converter gets wrong."""

from __future__ import annotations

import compress_zoo
import torch
from torch.nn import functional


class TwoFaced(compress_zoo.Net):
    """Answers otherwise while it is exported, as a converter's mistake would."""

    def forward(self, x):
        scores = super().forward(x)
        return scores.roll(1, -1) if torch.compiler.is_exporting() else scores


class Nearly(compress_zoo.Net):
    """The same, off by a hundredth of the scores: more than other kernels, less than what changes a class."""

    def forward(self, x):
        scores = super().forward(x)
        return scores * 1.01 if torch.compiler.is_exporting() else scores


class Unsure(torch.nn.Module):
    """Boxes in pixels beside scores between 0 and 1, which alone go wrong on the way to a file."""

    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(144, 4)
        self.wrong = False

    def forward(self, x):
        found = self.dense(x.flatten(1))
        scores = found[:, 2:].sigmoid()
        if torch.compiler.is_exporting() and self.wrong:
            scores = 1 - scores
        return torch.cat([640 * found[:, :2].sigmoid(), scores], 1)


class Drawing(compress_zoo.Net):
    def forward(self, x):
        return super().forward(functional.dropout(x, 0.5, training=True))


class Beside(compress_zoo.Net):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class Summed(compress_zoo.Net):
    def forward(self, x):
        return super().forward(x).sum(0)


class Resized(torch.nn.Module):
    """Nearest neighbours where sizes grow and shrink, by whole factors and others."""

    def forward(self, x):
        return tuple(functional.interpolate(x, size=size) for size in ((17, 13), (5, 7), (6, 6), (24, 36)))


def two_faced():
    return TwoFaced().eval()


def nearly():
    return Nearly().eval()


def unsure():
    return Unsure().eval()


def wrong_scores():
    model = Unsure().eval()
    model.wrong = True
    return model


def drawing():
    return Drawing().eval()


def beside():
    return Beside().eval()


def summed():
    return Summed().eval()


def resized():
    return Resized().eval()
