"""Random rotation, translation and scaling of a whole batch at once."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(
    images: Tensor, generator: torch.Generator, *, rotation: float = 0.0, translate: float = 0.0, scale: float = 0.0
) -> Tensor:
    """Apply a random affine transformation to each image; pixels from outside the image are 0.

    Args:
        images: float (N, H, W), background 0.
        generator: source of randomness, on the CPU, so that a seed gives the same draws on every device.
        rotation: degrees; each image turns about its center by an angle uniform in ±rotation.
        translate: share of the width and of the height, uniform in ±translate.
        scale: each image grows by a factor uniform in 1 ± scale.

    Returns: float (N, H, W), the input itself when there is nothing to do.
    """
    if not (rotation or translate or scale):
        return images
    draws = torch.rand(4, len(images), generator=generator).mul_(2).sub_(1)  # uniform in ±1
    angle = draws[0] * math.radians(rotation)
    size = 1 + draws[1] * scale
    cosine, sine = angle.cos() / size, angle.sin() / size
    # Maps output coordinates to input coordinates; the image spans ±1, so a share counts double.
    matrix = torch.stack(
        [cosine, -sine, draws[2] * 2 * translate, sine, cosine, draws[3] * 2 * translate], dim=1
    ).reshape(-1, 2, 3)  # (N, 2, 3)
    images, matrix = images.unsqueeze(1), matrix.to(images.device, non_blocking=True)  # (N, 1, H, W), (N, 2, 3)
    count, _, height, width = images.shape
    # F.affine_grid multiplies image by image; one product for all is many times faster.
    points = F.affine_grid(torch.eye(2, 3, device=images.device)[None], [1, 1, height, width], align_corners=False)
    points = F.pad(points.reshape(-1, 2), (0, 1), value=1)  # (H * W, 3): x, y, 1
    grid = (matrix.reshape(-1, 3) @ points.T).reshape(count, 2, height, width).movedim(1, -1)  # (N, H, W, 2)
    return F.grid_sample(images, grid, align_corners=False).squeeze(1)
