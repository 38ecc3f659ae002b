from __future__ import annotations

import torch
from edgepress_models import augment
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(0, 3))
def test_augmentation_moves_pixels_and_loses_none_inside_the_margin(seed: int, count: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 1, 12, 12)
    images[:, :, shift : 12 - shift, shift : 12 - shift] = torch.rand(
        count, 1, 12 - 2 * shift, 12 - 2 * shift, generator=generator
    )
    moved = augment.shift_and_flip(images, generator, shift)
    assert moved.shape == images.shape
    assert torch.equal(moved.flatten(1).sort(1).values, images.flatten(1).sort(1).values)


def test_without_shift_half_the_images_are_mirrored() -> None:
    images = torch.rand(400, 1, 4, 4)
    moved = augment.shift_and_flip(images, torch.Generator().manual_seed(0), max_shift=0)
    same = (moved == images).flatten(1).all(1)
    mirrored = (moved == images.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_shift_moves_digits_and_mirrors_none() -> None:
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 3:6] = torch.tensor([1.0, 2.0, 3.0])
    moved = augment.shift(images, torch.Generator().manual_seed(0))
    rows = moved.sum(3).argmax(2).flatten()
    columns = moved.sum(2).argmax(2).flatten()
    assert set(rows.tolist()) == {2, 3, 4, 5, 6}
    assert set(columns.tolist()) == {3, 4, 5, 6, 7}
    assert all(
        torch.equal(image[0, row, column - 2 : column + 1], torch.tensor([1.0, 2.0, 3.0]))
        for image, row, column in zip(moved, rows, columns, strict=True)
    )


def test_affine_without_any_change_gives_the_images_back() -> None:
    images = torch.rand(5, 2, 8, 8) - 0.4
    same = augment.affine(images, torch.Generator().manual_seed(0), max_shift=0, max_degrees=0, max_scale=0)
    assert torch.allclose(same, images, atol=1e-5)


def test_affine_turns_scales_and_shifts_as_far_as_it_is_told() -> None:
    chance = torch.Generator().manual_seed(0)
    bar = torch.full((300, 1, 28, 28), -0.42)
    bar[:, :, 6:22, 13:15] = 2.8
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")

    def spread(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The centre's distance from the middle, the angle of the bar in degrees, and its length."""
        mass = images[:, 0] - images.min()
        mass = mass / mass.sum((1, 2), keepdim=True)
        right, down = (mass * x).sum((1, 2)), (mass * y).sum((1, 2))
        dx, dy = x - right[:, None, None], y - down[:, None, None]
        lean = torch.atan2((mass * dx * dy).sum((1, 2)), (mass * dy * dy).sum((1, 2)))
        return torch.stack((right, down)).abs(), torch.rad2deg(lean).abs(), (mass * dy * dy).sum((1, 2)).sqrt()

    _, _, length = spread(bar)
    off, _, _ = spread(augment.affine(bar, chance, max_shift=3, max_degrees=0, max_scale=0))
    assert 2.7 < off.max() <= 3.05
    _, lean, _ = spread(augment.affine(bar, chance, max_shift=0, max_degrees=15, max_scale=0))
    assert 13 < lean.max() <= 15.5
    _, _, long = spread(augment.affine(bar, chance, max_shift=0, max_degrees=0, max_scale=0.2))
    assert 1.15 < (long / length).max() <= 1.23
    assert 0.77 <= (long / length).min() < 0.85
    turned = augment.affine(bar, chance, max_shift=4)
    assert turned.min() == bar.min()
    assert turned.shape == bar.shape
