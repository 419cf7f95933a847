"""Augmentation against torchvision's own transformation, image by image."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from src.learning.augment import augment


def draws(count, seed):
    """The draws that augment makes: of rotation, scale, shift across and shift down, each in ±1."""
    return torch.rand(4, count, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def oracle(image, *, angle=0.0, across=0.0, down=0.0, scale=1.0):
    moved = tv.affine(
        image[None], angle=angle, translate=[across, down], scale=scale, shear=[0, 0],
        interpolation=InterpolationMode.BILINEAR, fill=0,
    )  # fmt: skip
    return moved[0]


@pytest.fixture
def images(digits):
    return digits.train_images[:16].float()


def test_rotation_and_scale_are_torchvisions(images):
    turned = augment(images, torch.Generator().manual_seed(3), rotation=30, scale=0.2)
    angle, size, _, _ = draws(16, 3)
    for image, result, a, s in zip(images, turned, angle * 30, 1 + size * 0.2, strict=True):
        torch.testing.assert_close(result, oracle(image, angle=-a.item(), scale=s.item()), atol=0.05, rtol=0)


def test_shift_is_a_share_of_the_size(images):
    moved = augment(images, torch.Generator().manual_seed(5), shift=0.1)
    _, _, across, down = draws(16, 5)
    for image, result, x, y in zip(images, moved, across * 2.8, down * 2.8, strict=True):  # pixels
        torch.testing.assert_close(result, oracle(image, across=-x.item(), down=-y.item()), atol=0.05, rtol=0)


def test_every_image_moves_its_own_way_and_the_seed_decides(images):
    same = images[:1].expand(8, -1, -1)
    once = augment(same, torch.Generator().manual_seed(0), rotation=10, shift=0.05)
    again = augment(same, torch.Generator().manual_seed(0), rotation=10, shift=0.05)
    other = augment(same, torch.Generator().manual_seed(1), rotation=10, shift=0.05)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len(torch.unique(once.flatten(1), dim=0)) == 8


def test_nothing_asked_nothing_done(images):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment(images, generator) is images
    assert torch.equal(generator.get_state(), before)
