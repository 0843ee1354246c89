"""From an image to the model's input: one resize rule for training, prediction and export.

uint8 [H, W, 3] RGB  ->  `prepare`  ->  tensor [3, h, w] 0..255, not normalized, and the matrix from the image's pixels to the input's.
Normalizing and padding happen inside the model, so that nobody can forget them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from .config import InputConfig


def input_size(height: int, width: int, config: InputConfig) -> tuple[int, int]:
    """Height and width at which the model sees an image.

    The shorter side becomes `min_size` unless the longer would exceed `max_size`; without `min_size` the image is magnified by `scale`.

    Source: Detectron2's ResizeShortestEdge (rounding "nearest"); torchvision's GeneralizedRCNNTransform (rounding "floor").
    """
    short, long = min(height, width), max(height, width)
    if config.rounding == "floor":
        scale = config.scale if config.min_size is None else config.min_size / short
        if config.max_size is not None:
            scale = min(scale, config.max_size / long)
        return max(1, int(height * scale)), max(1, int(width * scale))
    scale = config.scale if config.min_size is None else config.min_size / short
    new_height, new_width = height * scale, width * scale
    if config.min_size is not None:  # exact, where height * (min_size / height) might round
        new_height, new_width = (
            (config.min_size, scale * width)
            if height < width
            else (scale * height, config.min_size)
        )
    if config.max_size is not None and max(new_height, new_width) > config.max_size:
        shrink = config.max_size / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], config: InputConfig) -> Tensor:
    """The image at another size, as a tensor [3, h, w]: uint8 by Pillow, float32 by torch, as `config.resize` says."""
    if config.resize == "pillow":
        if image.shape[:2] != size:
            image = np.asarray(
                Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
            )
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    return F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]


def prepare(
    image: UInt8[np.ndarray, "H W 3"], config: InputConfig
) -> tuple[Tensor, Float[Tensor, "3 3"]]:
    """The model's input for one image, and the matrix from original to input pixels."""
    height, width = image.shape[:2]
    size = input_size(height, width, config)
    return resize(image, size, config), torch.diag(
        torch.tensor([size[1] / width, size[0] / height, 1.0])
    )


def prepare_as_torchvision(
    image: UInt8[np.ndarray, "H W 3"], config: InputConfig
) -> tuple[Tensor, Float[Tensor, "3 3"]]:
    """The input of a model with torchvision's resize, normalized before it is resized, for a `Batch(normalized=True)`.

    The same numbers as `prepare` and the model give, but equal to torchvision's to the last bit: a network with random weights makes a pixel of
    a rounding error.

    Source: torchvision's to_tensor and GeneralizedRCNNTransform.
    """
    height, width = image.shape[:2]
    size = input_size(height, width, config)
    order = slice(None, None, -1 if config.channel_order == "bgr" else 1)
    mean, std = (
        torch.tensor([v / 255 for v in values])[:, None, None]
        for values in (config.mean, config.std)
    )
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[order])).float()
    pixels.div_(255).sub_(mean).div_(std)  # in its place: an image of 24 megapixels is 288 MB
    resized = F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]
    return resized, torch.diag(torch.tensor([size[1] / width, size[0] / height, 1.0]))
