"""From an image to the model's input: one resize rule for training, prediction and export.

In:  an image, uint8 [H, W, 3] RGB.
Out: a tensor [3, h, w], 0..255, not normalized, and the matrix from the image's pixels to the
tensor's.

The model itself normalizes and pads, so that no caller can forget to.
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
    """Returns the height and width to which an image is resized for the model.

    The shorter side becomes `min_size` unless the longer would exceed `max_size`. Without
    `min_size`, both sides are multiplied by `scale`.

    Args:
        height: of the original image, in pixels.
        width: of the original image, in pixels.
        config: the resize rule.

    Source: Detectron2's ResizeShortestEdge (rounding "nearest"); torchvision's
    GeneralizedRCNNTransform (rounding "floor").
    """
    short = min(height, width)
    long = max(height, width)
    scale = config.scale if config.min_size is None else config.min_size / short

    if config.rounding == "floor":
        if config.max_size is not None:
            scale = min(scale, config.max_size / long)
        return max(1, int(height * scale)), max(1, int(width * scale))

    # The shorter side is set exactly, because height * (min_size / height) may round.
    new_height: float = height * scale
    new_width: float = width * scale
    if config.min_size is not None:
        if height < width:
            new_height = config.min_size
        else:
            new_width = config.min_size

    if config.max_size is not None and max(new_height, new_width) > config.max_size:
        shrink = config.max_size / max(new_height, new_width)
        new_height *= shrink
        new_width *= shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], config: InputConfig) -> Tensor:
    """Resizes an image to (height, width), by the method that `config.resize` names.

    Returns:
        A tensor [3, h, w], 0..255: uint8 if resized by Pillow, float32 if by torch.
    """
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
    """Returns the model's input for one image, and the matrix from original to input pixels."""
    height, width = image.shape[:2]
    size = input_size(height, width, config)
    to_model = torch.diag(torch.tensor([size[1] / width, size[0] / height, 1.0]))
    return resize(image, size, config), to_model


def prepare_as_torchvision(
    image: UInt8[np.ndarray, "H W 3"], config: InputConfig
) -> tuple[Tensor, Float[Tensor, "3 3"]]:
    """Returns the input for a `Batch(normalized=True)`: normalized, then resized, like torchvision.

    `prepare` and the model compute the same up to rounding errors. This is equal to torchvision to
    the last bit, because a network with random weights can turn a rounding error into a pixel.

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
    pixels.div_(255).sub_(mean).div_(std)  # in place, as an image of 24 megapixels takes 288 MB

    resized = F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]
    return resized, torch.diag(torch.tensor([size[1] / width, size[0] / height, 1.0]))
