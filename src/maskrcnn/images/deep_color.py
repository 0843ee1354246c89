"""All 16 bits of colors in PNG and PPM files, of which Pillow keeps the upper 8.

Pillow's decoder unpacks either byte of a 16-bit color into its 8-bit image: the upper one if it is
told the true byte order, the lower one if it is told the other. Two passes give both.
"""

from __future__ import annotations

from typing import IO

import numpy as np
from jaxtyping import UInt16
from PIL import ImageFile

from .open_image import ImageError, open_pillow

# raw mode of the file -> (mode, raw mode) of the images with the upper and with the lower bytes
_TWO_PASSES = {
    "RGB;16B": (("RGB", "RGB;16B"), ("RGB", "RGB;16L")),
    "RGBA;16B": (("RGBA", "RGBA;16B"), ("RGBA", "RGBA;16L")),
}
_GRAY_ALPHA = "LA;16B"


def is_deep_color(image: ImageFile.ImageFile) -> bool:
    """Whether an opened image has colors of more than 8 bits, which Pillow would cut to 8.

    Raises:
        ImageError: it has, but only those of PNG, PPM and TIFF can be read whole.
    """
    if image.format == "PPM":
        return image.mode == "RGB" and _largest(image) > 255
    if image.format == "JPEG2000":
        deep = image.mode in ("RGB", "RGBA", "YCbCr") and _jpeg2000_bits(image) > 8
    else:
        deep = _raw_mode(image) in (*_TWO_PASSES, _GRAY_ALPHA, "RGB;16L", "RGBA;16L")
    if deep and image.format not in ("PNG", "TIFF"):
        raise ImageError(
            f"{image.format} with more than 8 bits per color would lose the lower bits; "
            "save it as PNG or TIFF"
        )
    return deep and image.format == "PNG"


def read_deep_color(
    file: IO[bytes], image: ImageFile.ImageFile, limit: int
) -> UInt16[np.ndarray, "H W C"]:
    """Reads the colors of an image for which `is_deep_color` holds: gray or RGB, 0 to 65535.

    Args:
        file: the file of the image.
        image: opened from it, not decoded yet; unusable afterwards.
        limit: largest number of pixels.
    """
    if image.format == "PPM":
        return _read_ppm(file, image)

    raw_mode = _raw_mode(image)
    if raw_mode == _GRAY_ALPHA:  # four bytes: gray, upper and lower, and alpha
        both = _decoded(image, "RGBA", "RGBA")
        return _joined(both[:, :, :1], both[:, :, 1:2])

    upper_pass, lower_pass = _TWO_PASSES[raw_mode]
    upper = _decoded(image, *upper_pass)[:, :, :3]
    lower = _decoded(open_pillow(file, limit), *lower_pass)[:, :, :3]
    return _joined(upper, lower)


def _joined(upper: np.ndarray, lower: np.ndarray) -> UInt16[np.ndarray, "H W C"]:
    values = upper.astype(np.uint16)
    values <<= 8
    values |= lower
    return values


def _decoded(image: ImageFile.ImageFile, mode: str, raw_mode: str) -> np.ndarray:
    """Decodes an image in another mode than its header says."""
    image._mode = mode
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
    image.info.pop("transparency", None)
    return np.asarray(image)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    args = image.tile[0][3] if image.tile else None
    name = args[0] if isinstance(args, tuple | list) and args else args
    return name if isinstance(name, str) else ""


def _largest(image: ImageFile.ImageFile) -> int:
    """The value of white in a PPM file, (raw mode, value) in Pillow's words."""
    args = image.tile[0][3]
    return int(args[1]) if isinstance(args, tuple) and len(args) == 2 else 255


def _read_ppm(file: IO[bytes], image: ImageFile.ImageFile) -> UInt16[np.ndarray, "H W C"]:
    """Colors of two bytes each, scaled so that white is 65535, as Pillow scales gray ones."""
    file.seek(0)
    if file.read(2) != b"P6":
        raise ImageError("a PPM file in text form with more than 8 bits; save it as PNG")
    file.seek(image.tile[0][2])
    count = image.width * image.height * 3
    data = file.read(2 * count)
    if len(data) < 2 * count:
        raise ImageError("the image file is truncated")

    values = np.frombuffer(data, ">u2").reshape(image.height, image.width, 3)
    largest = _largest(image)
    if largest == 65535:
        return values.astype(np.uint16)
    scaled = np.minimum(values, largest).astype(np.uint32) * 65535
    return ((scaled + largest // 2) // largest).astype(np.uint16)


def _jpeg2000_bits(image: ImageFile.ImageFile) -> int:
    """Bits per value, from the size marker of the code stream."""
    file = image.fp
    if file is None:
        return 8
    position = file.tell()
    file.seek(0)
    head = file.read(1 << 16)
    file.seek(position)
    at = head.find(b"\xff\x4f\xff\x51")
    return (head[at + 42] & 0x7F) + 1 if 0 <= at < len(head) - 42 else 8
