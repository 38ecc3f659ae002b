"""Tiny models with what pruning has to know of: attention, feed-forward parts, recurrent layers, residual blocks."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

STEPS, WIDTH, CLASSES = 6, 8, 3
SIZES = {"train": 192, "calibrate": 16, "validate": 96}


@functools.cache
def load(split):
    """Sequences (N, 6, 8) of noise in which one of three features is raised in the second half."""
    rng = np.random.default_rng(sorted(SIZES).index(split))
    y = rng.integers(0, CLASSES, SIZES[split])
    x = rng.standard_normal((SIZES[split], STEPS, WIDTH)).astype(np.float32) * 0.5
    x[np.arange(len(y)), STEPS // 2 :, y] += 1
    return x, y.astype(np.int64)


def seeded(kind, *arguments):
    """A model with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*arguments).eval()


def trained(model, epochs=12):
    """The model after a short training."""
    x, y = (torch.from_numpy(array) for array in load("train"))
    optimiser = torch.optim.Adam(model.train().parameters(), 5e-3)
    for _ in range(epochs):
        for start in range(0, len(x), 64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[start : start + 64]), y[start : start + 64]).backward()
            optimiser.step()
    return model.eval()


class Attends(nn.Module):
    """Attention by hand; the width of a head comes from its own attribute, or from what its code derives."""

    def __init__(self, heads=4, *, joint=False, mixed=False, derive=False, inner=False):
        super().__init__()
        self.num_heads, self.head_dim, self.mixed = heads, WIDTH // heads, mixed
        self.all_width = WIDTH
        self.derive, self.inner = derive, inner
        if joint:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        if hasattr(self, "qkv"):
            joint = self.qkv(x)
            if self.mixed:
                q, k, v = joint.unflatten(-1, (self.num_heads, 3 * self.head_dim)).chunk(3, dim=-1)
            else:
                q, k, v = (part.unflatten(-1, (self.num_heads, self.head_dim)) for part in joint.chunk(3, dim=-1))
        else:
            width = x.shape[-1] // self.num_heads if self.derive else self.head_dim
            parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
            q, k, v = (part.unflatten(-1, (self.num_heads, width)) for part in parts)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        found = (torch.softmax(q @ k.transpose(-2, -1) / self.head_dim**0.5, dim=-1) @ v).transpose(1, 2)
        # Some code keeps the width of all heads in an attribute.
        found = found.reshape(*x.shape[:2], self.all_width) if self.inner else found.flatten(2)
        return self.out_proj(found)


class Reads(nn.Module):
    """A sequence in, scores out: attention by hand, then a feed-forward part, both with residuals."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention()
        self.norm = nn.LayerNorm(WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = x + self.attention(x)
        return self.head((x + self.feed(self.norm(x))).mean(dim=1))


class Encodes(nn.Module):
    """Layers of torch's own Transformer behind a dense one, with positions."""

    def __init__(self, layers=2):
        super().__init__()
        self.embed = nn.Linear(WIDTH, 16)
        self.position = nn.Parameter(torch.zeros(STEPS, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x) + self.position).mean(dim=1))


class Recurs(nn.Module):
    """A recurrent layer between two dense ones."""

    def __init__(self, kind=nn.GRU):
        super().__init__()
        self.embed = nn.Linear(WIDTH, 12)
        self.deep = nn.Linear(12, 12)
        self.cell = kind(12, 16, batch_first=True)
        self.wide = nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x, _ = self.cell(torch.relu(self.deep(torch.relu(self.embed(x)))))
        return self.head(torch.relu(self.wide(x[:, -1])))


class Residual(nn.Module):
    def __init__(self, useful):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        if not useful:
            # Nothing is lost without it.
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))


class Stack(nn.Module):
    """Residual blocks, of which the one in the middle adds nothing."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(WIDTH, 16)
        self.blocks = nn.Sequential(Residual(useful=True), Residual(useful=False), Residual(useful=True))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.embed(x.mean(dim=1)))))


class Coupled(nn.Module):
    """Convolutions over time, of which two add up and one is depthwise; then dense layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(STEPS, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.deep = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.middle = nn.Conv1d(16, 32, 3, padding=1)
        self.last = nn.Conv1d(32, 16, 1)
        self.hidden = nn.Linear(16 * WIDTH, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.last(torch.relu(self.middle(torch.relu(self.deep(x)))))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def another(answers=CLASSES):
    """A teacher of another kind, which knows nothing."""
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(STEPS * WIDTH, answers)))


def wider():
    """A teacher of more classes than there are."""
    return another(CLASSES + 2)
