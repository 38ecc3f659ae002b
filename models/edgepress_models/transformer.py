"""A small Transformer encoder for windows of sensor values.

Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, with normalisation before each part (Xiong et al.,
"On layer normalization in the Transformer architecture", ICML 2020) and patches of the signal as tokens (Dosovitskiy
et al., "An image is worth 16x16 words", ICLR 2021).
"""

from __future__ import annotations

import torch
from torch import nn

from edgepress_models import activity, checkpoint

PATCH_SAMPLES = 4
TOKENS = activity.WINDOW_SAMPLES // PATCH_SAMPLES


class Attention(nn.Module):
    """Self-attention with `num_heads` heads of `head_dim` channels each, (N, T, d) → (N, T, d)."""

    def __init__(self, wide: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = wide // num_heads
        self.q = nn.Linear(wide, wide)
        self.k = nn.Linear(wide, wide)
        self.v = nn.Linear(wide, wide)
        self.softmax = nn.Softmax(dim=-1)
        self.out = nn.Linear(wide, wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return out(softmax(q kᵀ / √head_dim) v), with the heads side by side."""
        q, k, v = (self._by_head(part(x)) for part in (self.q, self.k, self.v))
        weights = self.softmax(q @ k.transpose(2, 3) * self.head_dim**-0.5)
        mixed: torch.Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return mixed

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        # As many heads as the layer has: pruning may have taken some.
        return x.reshape(-1, x.shape[1], x.shape[2] // self.head_dim, self.head_dim).transpose(1, 2)


class Block(nn.Module):
    """Attention and a feed-forward part, each beside a shortcut, (N, T, d) → (N, T, d)."""

    def __init__(self, wide: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(wide)
        self.attention = Attention(wide, num_heads)
        self.norm2 = nn.LayerNorm(wide)
        self.expand = nn.Linear(wide, 2 * wide)
        self.relu = nn.ReLU()
        self.contract = nn.Linear(2 * wide, wide)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens (N, T, d)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: torch.Tensor = x + self.dropout(self.contract(self.relu(self.expand(self.norm2(x)))))
        return out


class Transformer(nn.Module):
    """Input (N, 128, 6) float32, normalised by the loader; output logits (N, classes)."""

    def __init__(self, wide: int, num_heads: int, depth: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH_SAMPLES * activity.CHANNELS, wide)
        self.position = nn.Parameter(torch.randn(TOKENS, wide) * 0.02)
        self.blocks = nn.Sequential(*(Block(wide, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(wide)
        self.head = nn.Linear(wide, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of windows (N, 128, 6): four samples of all channels are one token."""
        tokens = self.embed(x.reshape(-1, TOKENS, PATCH_SAMPLES * activity.CHANNELS)) + self.position
        logits: torch.Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def build(width: int = 64, num_heads: int = 4, depth: int = 2, classes: int = activity.CLASSES) -> nn.Module:
    """Return an untrained Transformer; by default it has 71,175 parameters.

    Raises:
        ValueError: a number is below 1, or the heads do not share the width evenly.
    """
    if min(width, num_heads, depth, classes) < 1 or width % num_heads:
        raise ValueError(
            f"expected width, num_heads, depth and classes ≥ 1 and width a multiple of num_heads, "
            f"got width={width}, num_heads={num_heads}, depth={depth}, classes={classes}"
        )
    return Transformer(width, num_heads, depth, classes)


def pretrained() -> nn.Module:
    """Return the Transformer with the weights that `python -m edgepress_models.train transformer` measured."""
    return checkpoint.load(build(), "transformer")


def example_input() -> torch.Tensor:
    """Return a batch of two blank windows, (2, 128, 6): two, so that an exporter does not fix the batch at one."""
    return torch.zeros(2, activity.WINDOW_SAMPLES, activity.CHANNELS)
