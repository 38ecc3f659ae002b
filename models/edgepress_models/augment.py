"""Light augmentation of small images in plain torch."""

from __future__ import annotations

import torch


def shift_and_flip(images: torch.Tensor, generator: torch.Generator, max_shift: int = 2) -> torch.Tensor:
    """Shift each image by up to `max_shift` pixels each way and mirror half of them, (N, C, H, W) → (N, C, H, W).

    Uncovered pixels take the batch's least value, which is the black background of MNIST-like images.
    """
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [max_shift] * 4, value=images.min().item())
    top, left = torch.randint(0, 2 * max_shift + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    each = torch.arange(count)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
