"""Augmentation against torchvision's transformation, image by image."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from drilldown.learning.augment import augment


def draws(count, seed):
    """The random numbers that augment draws for rotation, scale, x and y, each in ±1."""
    return torch.rand(4, count, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def transform(image, *, angle=0.0, x=0.0, y=0.0, scale=1.0):
    """Transform one image with torchvision."""
    moved = tv.affine(
        image[None], angle=angle, translate=[x, y], scale=scale, shear=[0, 0],
        interpolation=InterpolationMode.BILINEAR, fill=0,
    )  # fmt: skip
    return moved[0]


@pytest.fixture
def images(digits):
    return digits.train_images[:16].float()


def test_rotation_and_scale_are_those_of_torchvision(images):
    turned = augment(images, torch.Generator().manual_seed(3), rotation=30, scale=0.2)
    angle, size, _, _ = draws(16, 3)
    for image, result, a, s in zip(images, turned, angle * 30, 1 + size * 0.2, strict=True):
        torch.testing.assert_close(result, transform(image, angle=-a.item(), scale=s.item()), atol=0.05, rtol=0)


def test_translation_is_a_share_of_the_size(images):
    moved = augment(images, torch.Generator().manual_seed(5), translate=0.1)
    _, _, across, down = draws(16, 5)
    for image, result, x, y in zip(images, moved, across * 2.8, down * 2.8, strict=True):  # pixels
        torch.testing.assert_close(result, transform(image, x=-x.item(), y=-y.item()), atol=0.05, rtol=0)


def test_each_image_has_its_own_transformation_and_a_seed_repeats_it(images):
    same = images[:1].expand(8, -1, -1)
    first = augment(same, torch.Generator().manual_seed(0), rotation=10, translate=0.05)
    again = augment(same, torch.Generator().manual_seed(0), rotation=10, translate=0.05)
    other = augment(same, torch.Generator().manual_seed(1), rotation=10, translate=0.05)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(torch.unique(first.flatten(1), dim=0)) == 8


def test_without_augmentation_images_and_generator_stay_as_they_are(images):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment(images, generator) is images
    assert torch.equal(generator.get_state(), before)
