"""Strong augmentation for pseudo-labels: changed colors, blur, erased patches.

In:  a `Batch` of unlabeled images.
Out: the same batch with other pixels.

The teacher predicts pseudo-labels on the plain batch, the student trains on the strongly augmented
one. Both have the same geometry, so pseudo-labels need no moving.

Source: Liu et al. 2021, "Unbiased Teacher" (arXiv 2102.09480), appendix: color jitter, grayscale,
Gaussian blur and cutout on top of the weak augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..images.read import LUMA
from ..ops.device import no_autocast
from ..structures import Batch
from .augment import color_matrix

# Probabilities.
_COLOR = 0.8
_GRAY = 0.2
_BLUR = 0.5

_AMOUNT = 0.4  # of brightness, contrast and saturation
_HUE = 0.1  # of a full turn
_SIGMA = (0.1, 2.0)  # of the blur, model-input pixels

# Small patches cover parts of objects rather than whole ones.
_MAX_PATCHES = 3
_PATCH_AREA = (0.005, 0.03)  # of the image


@torch.no_grad()
def strong_augmentation(batch: Batch) -> Batch:
    """Changes colors, blurs and erases patches of each image, drawn by the image's own seed.

    Args:
        batch: images in 0..255 with seeds. Its geometry is kept.

    Returns:
        The batch with images in float32.
    """
    with no_autocast(batch.images.device):
        return replace(batch, images=_augmented_images(batch))


def _augmented_images(batch: Batch) -> Float[Tensor, "B 3 H W"]:
    images = batch.images.to(torch.float32, copy=True)
    for image, (height, width), seed in zip(
        images, batch.sizes.tolist(), batch.seeds.tolist(), strict=True
    ):
        rng = np.random.default_rng((seed, 1))  # other numbers than those that drew the geometry
        pixels = image[:, :height, :width]
        pixels.copy_(_blur(_change_color(pixels, rng), rng))

        mean = pixels.mean(dim=(1, 2), keepdim=True)
        for y0, y1, x0, x1 in _draw_patches(height, width, rng):
            pixels[:, y0:y1, x0:x1] = mean
    return images


def _change_color(
    image: Float[Tensor, "3 H W"], rng: np.random.Generator
) -> Float[Tensor, "3 H W"]:
    if rng.random() < _COLOR:
        factors = rng.uniform(1 - _AMOUNT, 1 + _AMOUNT, 3)
        brightness, contrast, saturation = (float(v) for v in factors)
        gray = float(image.mean(dim=(1, 2)) @ image.new_tensor(LUMA))
        hue = float(rng.uniform(-_HUE, _HUE) * 2 * np.pi)
        matrix = color_matrix((brightness, contrast, saturation, hue), gray)

        linear, shift = torch.from_numpy(matrix).to(image).split((3, 1), dim=1)
        image = (torch.einsum("ij,jhw->ihw", linear, image) + shift[..., None]).clamp(0, 255)
    if rng.random() < _GRAY:
        image = torch.einsum("j,jhw->hw", image.new_tensor(LUMA), image).expand_as(image)
    return image


def _blur(image: Float[Tensor, "3 H W"], rng: np.random.Generator) -> Float[Tensor, "3 H W"]:
    """Blurs with a Gaussian, one axis after the other; border pixels are replicated."""
    chance = rng.random()
    sigma = float(rng.uniform(*_SIGMA))
    if chance >= _BLUR:
        return image

    reach = max(1, round(2 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(image) / sigma) ** 2)
    row = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = F.pad(image[None], (reach, reach, 0, 0), mode="replicate")
    blurred = F.conv2d(padded, row, groups=3)
    padded = F.pad(blurred, (0, 0, reach, reach), mode="replicate")
    return F.conv2d(padded, row.transpose(2, 3), groups=3)[0]


def _draw_patches(
    height: int, width: int, rng: np.random.Generator
) -> Iterator[tuple[int, int, int, int]]:
    """Yields rows y0 to y1 and columns x0 to x1 of each patch to erase.

    Source: Zhong et al. 2020, "Random Erasing Data Augmentation".
    """
    for _ in range(int(rng.integers(0, _MAX_PATCHES + 1))):
        area = rng.uniform(*_PATCH_AREA) * height * width
        ratio = np.exp(rng.uniform(-1.0, 1.0))
        patch_height = max(1, min(height, round(float(np.sqrt(area * ratio)))))
        patch_width = max(1, min(width, round(float(np.sqrt(area / ratio)))))
        y0 = int(rng.integers(0, height - patch_height + 1))
        x0 = int(rng.integers(0, width - patch_width + 1))
        yield y0, y0 + patch_height, x0, x0 + patch_width
