"""The strong view of a batch: the same pixels in other colors, blurred, with patches missing. `strong_augmentation(batch) -> Batch`.

A teacher answers for the plain view of an unlabeled image; the student learns the answer on the disturbed one. Both share their geometry, so the
answer needs no moving.

Source: Liu et al. 2021, "Unbiased Teacher" (arXiv 2102.09480), appendix: color jitter, gray, Gaussian blur and cut-out on top of the weak view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..ops.device import no_autocast
from ..structures import Batch
from .augment import color_matrix

_COLOR, _GRAY, _BLUR = 0.8, 0.2, 0.5  # probabilities
_AMOUNT, _HUE = 0.4, 0.1  # of brightness, contrast and saturation; of a turn
_SIGMA = (0.1, 2.0)  # of the blur, model-input pixels
_PATCHES, _PATCH_AREA = (
    3,
    (0.005, 0.03),
)  # at most so many, each of this part of the image: objects are covered in part rather than wholly
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


@torch.no_grad()
def strong_augmentation(batch: Batch) -> Batch:
    """The strong view: colors, blur and missing patches drawn by each image's own seed; what is where stays the same."""
    with no_autocast(batch.images.device):
        return replace(batch, images=_disturbed(batch))


def _disturbed(batch: Batch) -> Float[Tensor, "B 3 H W"]:
    images = batch.images.to(torch.float32, copy=True)
    for image, (height, width), seed in zip(
        images, batch.sizes.tolist(), batch.seeds.tolist(), strict=True
    ):
        rng = np.random.default_rng((seed, 1))  # not the numbers that drew the geometry
        seen = image[:, :height, :width]
        seen.copy_(_blurred(_colored(seen, rng), rng))
        fill = seen.mean(dim=(1, 2), keepdim=True)
        for y0, y1, x0, x1 in _patches(height, width, rng):
            seen[:, y0:y1, x0:x1] = fill
    return images


def _colored(image: Float[Tensor, "3 H W"], rng: np.random.Generator) -> Float[Tensor, "3 H W"]:
    if rng.random() < _COLOR:
        brightness, contrast, saturation = (
            float(v) for v in rng.uniform(1 - _AMOUNT, 1 + _AMOUNT, 3)
        )
        mean = float(image.mean(dim=(1, 2)) @ image.new_tensor(_LUMA))
        matrix = color_matrix(
            (brightness, contrast, saturation, float(rng.uniform(-_HUE, _HUE) * 2 * np.pi)), mean
        )
        linear, shift = torch.from_numpy(matrix).to(image).split((3, 1), dim=1)
        image = (torch.einsum("ij,jhw->ihw", linear, image) + shift[..., None]).clamp(0, 255)
    if rng.random() < _GRAY:
        image = torch.einsum("j,jhw->hw", image.new_tensor(_LUMA), image).expand_as(image)
    return image


def _blurred(image: Float[Tensor, "3 H W"], rng: np.random.Generator) -> Float[Tensor, "3 H W"]:
    """Through a Gaussian, its two axes one after the other, the edge continued."""
    chance, sigma = rng.random(), float(rng.uniform(*_SIGMA))
    if chance >= _BLUR:
        return image
    reach = max(1, round(2 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(image) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    wide = F.conv2d(F.pad(image[None], (reach, reach, 0, 0), mode="replicate"), weights, groups=3)
    return F.conv2d(
        F.pad(wide, (0, 0, reach, reach), mode="replicate"), weights.transpose(2, 3), groups=3
    )[0]


def _patches(
    height: int, width: int, rng: np.random.Generator
) -> Iterator[tuple[int, int, int, int]]:
    """First and last row and column of each part that goes missing.

    Source: Zhong et al. 2020, "Random Erasing Data Augmentation".
    """
    for _ in range(int(rng.integers(0, _PATCHES + 1))):
        area, ratio = rng.uniform(*_PATCH_AREA) * height * width, np.exp(rng.uniform(-1.0, 1.0))
        h, w = (
            max(1, min(limit, round(float(side))))
            for limit, side in ((height, np.sqrt(area * ratio)), (width, np.sqrt(area / ratio)))
        )
        y0, x0 = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        yield y0, y0 + h, x0, x0 + w
