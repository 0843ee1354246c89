"""What `predict` takes as one image.

In:  a file name, a URL, bytes, a file object, a PIL image, an array or a tensor.
Out: uint8 RGB [H, W, 3]. Anything else is refused by its position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ..images.open_image import BinaryFile
from ..images.read import ImageError, read_first_frame

ImageInput = str | Path | bytes | BinaryFile | np.ndarray | Image.Image | Tensor

_EXPECTED = (
    "expected a file name, a URL, bytes, a binary file object, a PIL image, "
    "an array [H, W, 3] or a tensor [3, H, W]"
)
_ROUNDING = 1e-3  # floating-point values may exceed 0..1 by this


def is_image(value: object) -> bool:
    """Whether a value is one image, and not several."""
    return isinstance(value, ImageInput)


def check_input(value: Any, where: str) -> None:
    """Checks that a value is one image.

    Args:
        value: to check.
        where: its position in messages, such as "images[3]".

    Raises:
        TypeError: it is not.
    """
    if not is_image(value):
        got = "None" if value is None else type(value).__name__
        raise TypeError(f"{where}: {_EXPECTED}, got {got}")


def read_input(
    image: ImageInput, intensity_range: tuple[float, float] | None, max_pixels: int
) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
    """Reads an image as RGB; also returns its number of frames, of which the first is used.

    Raises:
        ImageError: the image cannot be read, or is a tensor of another shape or range.
    """
    if isinstance(image, Tensor):
        image = _array(image)
    return read_first_frame(image, intensity_range, max_pixels)


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor [3, H, W] as an array [H, W, 3] of uint8, or of floating point 0..1."""
    shape = list(tensor.shape)
    if tensor.ndim == 4:
        raise ImageError(
            f"expected a tensor [3, H, W], got shape {shape}; for several, pass list(tensor)"
        )
    if tensor.ndim != 3 or shape[0] not in (1, 3) or 0 in shape:
        advice = ""
        if tensor.ndim == 3 and shape[2] in (1, 3):
            advice = "; for channels last, pass tensor.permute(2, 0, 1)"
        raise ImageError(f"expected a tensor [3, H, W], got shape {shape}{advice}")

    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return tensor.permute(1, 2, 0).numpy()
    values = tensor.float()
    low = float(values.min())
    high = float(values.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        advice = "divide by 255" if low >= 0 and high <= 255 else "pass it before normalization"
        raise ImageError(
            f"expected a floating-point tensor with values 0 to 1, got {low:g} to {high:g}; "
            f"{advice}"
        )
    return (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
