"""Reads images of any kind as uint8 RGB.

In:  a file, a PIL image or an array: RGB, gray, 16-bit, floating point, RGBA, palette, CMYK, 1-bit;
     with or without an EXIF rotation.
Out: uint8 [H, W, 3], RGB, contiguous, upright. Alpha is dropped. Of several frames the first is
used.

8-bit values are unchanged. Deeper values are scaled so that `intensity_range` maps to 0..255.
Without a range, the full range of the type is used: 0..65535 for 16 bits, 0..1 for floating point.
A 12-bit image would then be almost black, so pass its range (see `CocoDataset.intensity_range`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the gray value of a color, as Pillow's mode "L" has them (ITU-R 601)."""

_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 are rotated by a quarter turn
_EIGHT_BIT = {"1", "L", "P", "RGB"}


class ImageError(ValueError):
    """An image cannot be read; the message names the image and the reason."""


def read_image(
    source: str | Path | np.ndarray | Image.Image,
    intensity_range: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image as RGB.

    Args:
        source: a file, a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] in the
            order R, G, B, alpha.
        intensity_range: values of 16-bit and floating-point images that map to 0 and 255; by
            default the full range of the type. 8-bit images ignore it.

    Raises:
        ImageError: the file is missing, truncated or not an image, or values lie outside their
            type's range and no `intensity_range` is given.
    """
    if isinstance(source, str | Path):
        return _guarded(source, lambda image: _from_pil(image, intensity_range, str(source)))
    if isinstance(source, Image.Image):
        return _from_pil(source, intensity_range, "the given image")
    if isinstance(source, np.ndarray):
        return _from_array(source, intensity_range, "the given array")
    raise ImageError(
        f"cannot read an image from {type(source).__name__}; "
        "pass a file name, a PIL image or a numpy array [H, W, 3]"
    )


def read_values(path: str | Path, at_least: int | None = None) -> Shaped[np.ndarray, "H W *C"]:
    """Reads the values of a file as they are stored, upright.

    Args:
        path: the file.
        at_least: a smaller image of at least this many pixels per side suffices. A JPEG is then
            decoded at an eighth, a quarter or half its size, which is much faster.

    Returns:
        uint8 RGB, or one deep channel (16-bit, 32-bit, floating point).

    Raises:
        ImageError: the file cannot be read.
    """

    def read(image: Image.Image) -> np.ndarray:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        return _upright_values(image)

    return _guarded(path, read)


def image_size(path: str | Path) -> tuple[int, int]:
    """Reads the upright (height, width) of an image from the file's header alone."""
    return read_header(path).size


@dataclass(frozen=True)
class Header:
    """What the header of an image file states."""

    size: tuple[int, int]
    """(height, width), upright."""
    stored_size: tuple[int, int]
    """(height, width) before the EXIF orientation is applied."""
    deep: bool
    """More than 8 bits per value."""


def read_header(path: str | Path) -> Header:
    """Reads the size and depth of an image from the file's header alone."""
    return _guarded(path, _header)


def _header(image: Image.Image) -> Header:
    size = (image.height, image.width)
    turned = _may_have_exif(image) and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return Header(size[::-1] if turned else size, size, _is_deep(image))


def _may_have_exif(image: Image.Image) -> bool:
    """Returns False for a PNG without EXIF data, and True for all other files.

    Steps over the PNG's chunks, because Pillow's `getexif` decodes all pixels to find data that
    follows them.
    """
    if image.format != "PNG" or "exif" in image.info or "Raw profile type exif" in image.info:
        return True
    file = image.fp  # ty: ignore[missing-attribute]
    start = file.tell()
    file.seek(8)  # past the signature

    has_exif = False
    while not has_exif and len(header := file.read(8)) == 8:
        has_exif = header[4:] == b"eXIf"
        file.seek(int.from_bytes(header[:4], "big") + 4, 1)  # skip the data and their checksum

    file.seek(start)
    return has_exif


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _guarded(path: str | Path, use: Any) -> Any:
    """Calls `use` with the opened image; every failure becomes an `ImageError` that names the
    file."""
    try:
        with Image.open(path) as image:
            return use(image)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: file not found") from None
    except Image.UnidentifiedImageError:
        reason = "unknown format; convert it to PNG, JPEG or an 8-bit or single-channel TIFF"
        if Path(path).stat().st_size == 0:
            reason = "the file is empty"
        raise ImageError(f"{path}: cannot be read as an image: {reason}") from None
    # Pillow's decoders raise whatever the broken bytes lead to: OSError, SyntaxError, struct.error,
    # zlib.error, IndexError, ...
    except Exception as error:
        raise ImageError(
            f"{path}: cannot be read as an image: {error or type(error).__name__}"
        ) from error


def _upright_values(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        return np.asarray(image)
    special = image.mode not in _EIGHT_BIT or "transparency" in image.info
    if special and image.mode in ("P", "PA", "LA", "RGBa", "L", "RGB"):
        image = image.convert("RGBA")  # keeps the colors of transparent pixels as stored
    return np.array(image.convert("RGB"))


def _from_pil(
    image: Image.Image, intensity_range: tuple[float, float] | None, name: str
) -> np.ndarray:
    return _from_array(_upright_values(image), intensity_range, name)


def _from_array(
    values: np.ndarray, intensity_range: tuple[float, float] | None, name: str
) -> np.ndarray:
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or 0 in values.shape:
        raise ImageError(
            f"{name}: expected an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not empty, "
            f"got shape {list(values.shape)}"
        )

    values = values[:, :, :3]
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    if values.dtype != np.uint8:
        values = _to_8_bit(values, intensity_range, name)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _to_8_bit(
    values: np.ndarray, intensity_range: tuple[float, float] | None, name: str
) -> np.ndarray:
    """Maps the range linearly to 0..255, clipped and rounded."""
    if values.dtype.kind not in "uif":
        raise ImageError(
            f"{name}: expected integer or floating-point values, got type {values.dtype}"
        )
    if not np.isfinite(values).all():
        raise ImageError(
            f"{name}: contains values that are not finite; "
            "replace them, for example with numpy.nan_to_num"
        )

    if intensity_range is None:
        intensity_range = (0.0, 1.0) if values.dtype.kind == "f" else (0.0, 65535.0)
        low = float(values.min())
        high = float(values.max())
        if low < intensity_range[0] or high > intensity_range[1]:
            expected = f"{intensity_range[0]:g}..{intensity_range[1]:g}"
            raise ImageError(
                f"{name}: expected {values.dtype} values in {expected}, got {low:g} to {high:g}; "
                "pass intensity_range=(low, high)"
            )

    low, high = intensity_range
    if not high > low:
        raise ImageError(
            f"{name}: expected intensity_range=(low, high) with low < high, got ({low:g}, {high:g})"
        )

    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.clip(scaled + 0.5, 0, 255).astype(np.uint8)
