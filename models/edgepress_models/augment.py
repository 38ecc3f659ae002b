"""Light augmentation of small images in plain torch: (images (N, C, H, W), source of chance) → the same shape.

A recipe names one of them as `[data] augment = "edgepress_models.augment:shift"`.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def shift(images: torch.Tensor, generator: torch.Generator, max_shift: int = 2) -> torch.Tensor:
    """Shift each image by up to `max_shift` pixels each way, for images that a mirror would change the class of.

    Uncovered pixels take the batch's least value, which is the black background of MNIST-like images.
    """
    return _picked(images, *_shifted(images, generator, max_shift), max_shift)


def shift_and_flip(images: torch.Tensor, generator: torch.Generator, max_shift: int = 2) -> torch.Tensor:
    """Shift each image by up to `max_shift` pixels each way and mirror half of them.

    Uncovered pixels take the batch's least value, which is the black background of MNIST-like images.
    """
    rows, columns = _shifted(images, generator, max_shift)
    mirrored = torch.rand(len(images), 1, generator=generator) < 0.5
    return _picked(images, rows, torch.where(mirrored, columns.flip(1), columns), max_shift)


def shift_in_time(features: torch.Tensor, generator: torch.Generator, max_shift: int = 5) -> torch.Tensor:
    """Shift features (N, 1, frames, …) in time by up to `max_shift` frames each way; the outermost frame fills in."""
    count, frames = features.shape[0], features.shape[2]
    offset = torch.randint(-max_shift, max_shift + 1, (count, 1), generator=generator)
    taken = (torch.arange(frames) + offset).clamp(0, frames - 1)
    return features[torch.arange(count)[:, None], :, taken].transpose(1, 2)


def affine(
    images: torch.Tensor,
    generator: torch.Generator,
    max_shift: float = 2.0,
    max_degrees: float = 12.0,
    max_scale: float = 0.12,
) -> torch.Tensor:
    """Turn each image by up to `max_degrees`, scale it by up to `max_scale`, and shift it by up to `max_shift` pixels.

    Pixels between the grid are interpolated; uncovered ones take the batch's least value, the black background.
    """
    count, _, height, width = images.shape
    turn, scale, down, right = 2 * torch.rand(4, count, generator=generator) - 1
    angle, zoom = turn * math.radians(max_degrees), 1 + scale * max_scale
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Offsets are in halves of the image, as affine_grid counts.
    across, along = right * 2 * max_shift / width, down * 2 * max_shift / height
    maps = torch.stack((cosine, -sine, across, sine, cosine, along), 1).reshape(count, 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    background = images.min()
    # grid_sample fills with 0, so that the background has to be 0 while it works.
    return functional.grid_sample(images - background, grid, align_corners=False) + background


def _shifted(images: torch.Tensor, generator: torch.Generator, max_shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which rows (N, H) and columns (N, W) of the padded images to take."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 2 * max_shift + 1, (2, count, 1), generator=generator)
    return top + torch.arange(height), left + torch.arange(width)


def _picked(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, max_shift: int) -> torch.Tensor:
    padded = functional.pad(images, [max_shift] * 4, value=images.min().item())
    each = torch.arange(len(images))[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
