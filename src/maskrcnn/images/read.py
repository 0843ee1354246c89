"""Images of any kind as uint8 RGB.

In: a file, a PIL image or an array: RGB, gray, 16-bit, floating point, RGBA, palette, CMYK, 1-bit; EXIF-rotated or not.
Out: uint8 [H, W, 3], RGB, contiguous, upright. Alpha is dropped. Of a file with several frames the first is taken.

8-bit values stay as they are. Deeper values are scaled so that `intensity_range` becomes 0..255; without one, the full range of the type does:
0..65535 for 16 bits, 0..1 for floating point. Dividing a 12-bit image by 257 blackens it, hence the range (see `CocoDataset.intensity_range`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 are turned by a quarter
_EIGHT_BIT = {"1", "L", "P", "RGB"}


class ImageError(ValueError):
    """An image that cannot be read: which one, and why."""


def read_image(
    source: str | Path | np.ndarray | Image.Image,
    intensity_range: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image as RGB.

    Args:
        source: a file, a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] in the order R, G, B, alpha.
        intensity_range: values of 16-bit and floating-point images that become 0 and 255. 8-bit images ignore it.

    Raises:
        ImageError: the file is missing, broken or no image, or the values have no agreed range.
    """
    if isinstance(source, str | Path):
        return _guarded(source, lambda image: _from_pil(image, intensity_range, str(source)))
    if isinstance(source, Image.Image):
        return _from_pil(source, intensity_range, "the image given")
    if isinstance(source, np.ndarray):
        return _from_array(source, intensity_range, "the array given")
    raise ImageError(
        f"cannot read an image from {type(source).__name__}; give a file name, a PIL image or a numpy array [H, W, 3]"
    )


def read_values(path: str | Path, at_least: int | None = None) -> Shaped[np.ndarray, "H W *C"]:
    """The values of a file as they are stored, upright: uint8 RGB, or one deep channel (16-bit, 32-bit, floating point).

    Args:
        path: the file.
        at_least: pixels a side that are enough: a JPEG is decoded at an eighth, a quarter or a half where that leaves as many, much faster.
    """

    def read(image: Image.Image) -> np.ndarray:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        return _upright_values(image)

    return _guarded(path, read)


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image, upright, from the file's header alone."""
    return read_header(path).size


@dataclass(frozen=True)
class Header:
    """What a file says of its image before anything is decoded."""

    size: tuple[int, int]
    """(height, width), upright."""
    stored_size: tuple[int, int]
    """(height, width) before the EXIF orientation is applied."""
    deep: bool
    """More than 8 bits a value."""


def read_header(path: str | Path) -> Header:
    """Size and depth of an image, from the file's header alone."""
    return _guarded(path, _header)


def _header(image: Image.Image) -> Header:
    size = (image.height, image.width)
    turned = _may_have_exif(image) and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return Header(size[::-1] if turned else size, size, _is_deep(image))


def _may_have_exif(image: Image.Image) -> bool:
    """False for a PNG without EXIF, found by stepping over its chunks: Pillow's `getexif` decodes all pixels to look behind them."""
    if image.format != "PNG" or "exif" in image.info or "Raw profile type exif" in image.info:
        return True
    file = image.fp  # ty: ignore[missing-attribute]
    start = file.tell()
    file.seek(8)  # behind the signature
    found = False
    while not found and len(header := file.read(8)) == 8:
        found = header[4:] == b"eXIf"
        file.seek(int.from_bytes(header[:4], "big") + 4, 1)  # the data and its checksum
    file.seek(start)
    return found


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _guarded(path: str | Path, use: Any) -> Any:
    """`use(opened image)`, with every way to fail turned into one error that names the file."""
    try:
        with Image.open(path) as image:
            return use(image)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except Image.UnidentifiedImageError:
        size = Path(path).stat().st_size
        why = (
            "the file is empty"
            if size == 0
            else "its format is unknown; convert it to PNG, JPEG or an 8-bit or single-channel TIFF"
        )
        raise ImageError(f"{path}: cannot be read as an image: {why}") from None
    # Pillow's decoders raise whatever the broken bytes lead to: OSError, SyntaxError, struct.error, zlib.error, IndexError, ...
    except Exception as error:
        raise ImageError(
            f"{path}: cannot be read as an image: {error or type(error).__name__}"
        ) from error


def _upright_values(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        return np.asarray(image)
    if image.mode not in _EIGHT_BIT or "transparency" in image.info:
        # through RGBA, for a palette with transparent entries; what lies under alpha is kept as stored
        image = (
            image.convert("RGBA") if image.mode in ("P", "PA", "LA", "RGBa", "L", "RGB") else image
        )
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
            f"{name}: got an array of shape {list(values.shape)}, must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not empty"
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
    """Linear from the range to 0..255, clipped and rounded."""
    if values.dtype.kind not in "uif":
        raise ImageError(
            f"{name}: got values of type {values.dtype}, must be integers or floating point"
        )
    if not np.isfinite(values).all():
        raise ImageError(
            f"{name}: holds values that are not finite; replace them, for example with numpy.nan_to_num"
        )
    if intensity_range is None:
        intensity_range = (0.0, 1.0) if values.dtype.kind == "f" else (0.0, 65535.0)
        low, high = float(values.min()), float(values.max())
        if low < intensity_range[0] or high > intensity_range[1]:
            wanted = f"{intensity_range[0]:g}..{intensity_range[1]:g}"
            raise ImageError(
                f"{name}: values of type {values.dtype} from {low:g} to {high:g}, expected {wanted}; give intensity_range=(low, high)"
            )
    low, high = intensity_range
    if not high > low:
        raise ImageError(
            f"{name}: intensity_range is ({low:g}, {high:g}), the second must be larger"
        )
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.clip(scaled + 0.5, 0, 255).astype(np.uint8)
