"""Reads images of any kind as uint8 RGB.

In:  a file, bytes, a file object, a URL, a PIL image or an array: RGB, gray, 16-bit, floating
     point, RGBA, palette, CMYK, 1-bit; with or without an EXIF rotation.
Out: uint8 [H, W, 3], RGB, contiguous, upright. Alpha is dropped. Of several frames the first is
used, unless a TIFF says that three frames are the channels of one image.

8-bit values are unchanged. Deeper values are scaled so that `intensity_range` maps to 0..255.
Without a range, the full range of the type is used: 0..65535 for 16 bits, 0..1 for floating point.
A 12-bit image would then be almost black, so pass its range (see `CocoDataset.intensity_range`).
Other integers than uint8 and uint16 have no usual range: without one, they must be 0..255.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageFile, ImageOps

from .deep_color import is_deep_color, read_deep_color
from .image_files import ImageWarning
from .open_image import (
    BinaryFile,
    ImageError,
    UnusualValuesError,
    check_size,
    image_file,
    open_pillow,
    pixel_limit,
    source_name,
)
from .remote import download, is_url, refuse_other_schemes
from .tiff import TiffFile, read_samples, read_tiff

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the gray value of a color, as Pillow's mode "L" has them (ITU-R 601)."""

_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 are rotated by a quarter turn
_EIGHT_BIT = {"1", "L", "P", "RGB"}
_SIXTEEN_BIT = {"PNG", "PPM", "JPEG2000"}  # formats whose mode "I" holds 16-bit values
_NO_FRAMES = {"ICNS", "ICO", "JPEG", "MPO", "PSD"}  # sizes, previews and layers of one image
_CAMERA = 4095  # the largest value of a camera of 12 bits
_ROWS = 256  # scaled at a time
_PIXELS_AT_ONCE = 1 << 24  # copied from Pillow at a time

ImageFileInput = str | Path | bytes | BinaryFile


def read_image(
    source: ImageFileInput | np.ndarray | Image.Image,
    intensity_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image as RGB.

    Args:
        source: a file name, an http(s) URL as text, the bytes of a file, a binary file object, a
            PIL image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] in the order R, G, B,
            alpha.
        intensity_range: values of 16-bit and floating-point images that map to 0 and 255; by
            default the full range of the type. 8-bit images ignore it.
        max_pixels: largest width x height that is decoded; by default that of
            MASKRCNN_MAX_PIXELS, else 500 million.

    Raises:
        ImageError: the file is missing, truncated, not an image or too large, or values lie
            outside their type's range and no `intensity_range` is given.
    """
    return read_first_frame(source, intensity_range, max_pixels)[0]


def read_first_frame(
    source: ImageFileInput | np.ndarray | Image.Image,
    intensity_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
    """Reads an image as `read_image` does; also returns the number of frames in it.

    More than 1: the frames after the first are not used. A GIF with several counts as 2.
    """
    if isinstance(source, Image.Image):
        return _from_array(_upright_values(source), intensity_range, "the given image"), 1
    if isinstance(source, np.ndarray):
        return _from_array(source, intensity_range, "the given array"), 1
    if not isinstance(source, ImageFileInput):
        raise ImageError(
            f"cannot read an image from {type(source).__name__}; "
            "pass a file name, a PIL image or a numpy array [H, W, 3]"
        )

    limit = pixel_limit(max_pixels)
    with _opened(source, limit) as content:
        values = content.values()
        return _from_array(values, intensity_range, source_name(source)), content.frames()


def read_values(
    path: str | Path, at_least: int | None = None, max_pixels: int | None = None
) -> Shaped[np.ndarray, "H W *C"]:
    """Reads the values of a file as they are stored, upright.

    Args:
        path: the file.
        at_least: a smaller image of at least this many pixels per side suffices. A JPEG is then
            decoded at an eighth, a quarter or half its size, which is much faster.
        max_pixels: largest width x height that is decoded (see `read_image`).

    Returns:
        uint8 RGB, or deep values (16-bit, 32-bit, floating point): [H, W] or RGB.

    Raises:
        ImageError: the file cannot be read.
    """
    with _opened(path, pixel_limit(max_pixels)) as content:
        if at_least is not None and content.image is not None:
            content.image.draft(None, (at_least, at_least))
        return content.values()


def read_stored(path: str | Path) -> Shaped[np.ndarray, "H W *C"]:
    """Reads the values of a label map: not turned, not scaled, and indices where it has a palette.

    Raises:
        ImageError: the file cannot be read.
    """
    with _opened(path, pixel_limit(None)) as content:
        if content.image is not None:
            return np.asarray(content.image)
        assert content.tiff is not None
        values = read_samples(content.file, content.tiff.first, content.limit)
        return values[:, :, 0] if values.shape[2] == 1 else values


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
    frames: int = 1
    """Number of frames. More than 1: only the first is used. 2 for a GIF with several."""
    orientation: int = 1
    """EXIF orientation; 1 = stored upright, 5 to 8 = turned by a quarter."""


def read_header(source: ImageFileInput, max_pixels: int | None = None) -> Header:
    """Reads size, depth and number of frames of an image from the file's header alone."""
    with _opened(source, pixel_limit(max_pixels)) as content:
        size = content.size()
        orientation = content.orientation()
        upright = size[::-1] if orientation in (5, 6, 7, 8) else size
        return Header(upright, size, content.is_deep(), content.frames(), orientation)


@dataclass
class _Content:
    """An opened image file, of which one of two readers takes the pixels: Pillow's, or ours for
    what Pillow cannot read whole."""

    file: IO[bytes]
    limit: int
    """Largest number of pixels."""
    image: ImageFile.ImageFile | None
    """Opened by Pillow; None for a TIFF beyond it."""
    tiff: TiffFile | None

    def size(self) -> tuple[int, int]:
        """(height, width) as stored."""
        if self.image is None:
            assert self.tiff is not None
            return self.tiff.first.size
        return self.image.height, self.image.width

    def orientation(self) -> int:
        """EXIF orientation, 1 to 8."""
        if self.image is None:
            assert self.tiff is not None
            return self.tiff.first.orientation
        return self.image.getexif().get(_ORIENTATION, 1) if _may_have_exif(self.image) else 1

    def is_deep(self) -> bool:
        """Whether values have more than 8 bits."""
        if self.image is None:
            assert self.tiff is not None
            return self.tiff.first.bits > 8
        return _is_deep(self.image) or is_deep_color(self.image)

    def frames(self) -> int:
        """Number of frames; 1 if all are used."""
        if self.tiff is not None:
            return 1 if self.tiff.channels else self.tiff.count
        if self.image is None or self.image.format in _NO_FRAMES:
            return 1
        if self.image.format == "GIF":  # counting would read the whole file
            return 2 if getattr(self.image, "is_animated", False) else 1
        return getattr(self.image, "n_frames", 1)

    def values(self) -> np.ndarray:
        """The values, upright."""
        if self.image is None:
            assert self.tiff is not None
            pages = self.tiff.channels or (self.tiff.first,)
            values = [read_samples(self.file, page, self.limit) for page in pages]
            joined = values[0] if len(values) == 1 else np.concatenate(values, axis=2)
            upright = _turned(joined, self.orientation())
            return upright[:, :, 0] if upright.shape[2] == 1 else upright
        if is_deep_color(self.image):
            orientation = self.orientation()
            values = read_deep_color(self.file, self.image, self.limit)
            return _turned(values, orientation)
        return _upright_values(self.image)


@contextmanager
def _opened(source: ImageFileInput, limit: int) -> Generator[_Content]:
    """Opens a file; every failure in the block becomes an `ImageError` that names it."""
    if isinstance(source, str | Path):
        refuse_other_schemes(source)
    given = download(source) if isinstance(source, str) and is_url(source) else source
    with image_file(given, source_name(source)) as file:
        tiff = read_tiff(file)
        if tiff and (tiff.channels or tiff.first.is_beyond_pillow):
            check_size(tiff.first.size[::-1], limit)
            yield _Content(file, limit, None, tiff)
            return
        with open_pillow(file, limit) as image:
            yield _Content(file, limit, image, tiff)


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


def _upright_values(image: Image.Image) -> np.ndarray:
    is_16_bit = image.format in _SIXTEEN_BIT
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        values = np.asarray(image)
        return values.astype(np.uint16) if is_16_bit and image.mode == "I" else values
    if image.mode in ("1", "L") and "transparency" not in image.info:
        gray = np.asarray(image.convert("L"))
        return np.repeat(gray[:, :, None], 3, axis=2)

    special = image.mode not in _EIGHT_BIT or "transparency" in image.info
    if special and image.mode in ("P", "PA", "LA", "RGBa", "L", "RGB"):
        image = image.convert("RGBA")  # keeps the colors of transparent pixels as stored
    return _pixels(image if image.mode == "RGB" else image.convert("RGB"))


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an RGB image; of a large one part by part, as Pillow copies them twice."""
    if image.width * image.height <= _PIXELS_AT_ONCE:
        return np.array(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation to [H, W, C]."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _from_array(
    values: np.ndarray, intensity_range: tuple[float, float] | None, name: str
) -> np.ndarray:
    given = values
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or 0 in values.shape:
        raise ImageError(
            f"{name}: expected an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not empty, "
            f"got shape {list(given.shape)}{_shape_advice(given)}"
        )

    values = values[:, :, :3]
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    if values.dtype != np.uint8:
        values = _to_8_bit(values, intensity_range, name)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _shape_advice(values: np.ndarray) -> str:
    if values.ndim == 3 and values.shape[0] in (1, 3, 4):
        return "; for channels first, pass array.transpose(1, 2, 0)"
    if values.ndim == 4:
        return "; for several images, pass list(array)"
    return ""


def _to_8_bit(
    values: np.ndarray, intensity_range: tuple[float, float] | None, name: str
) -> np.ndarray:
    """Maps the range linearly to 0..255, clipped and rounded."""
    kind = values.dtype.kind
    if kind not in "uif":
        raise ImageError(
            f"{name}: expected integer or floating-point values, got type {values.dtype}"
        )
    if kind == "f" and not np.isfinite(values).all():
        raise ImageError(
            f"{name}: contains values that are not finite; "
            "replace them, for example with numpy.nan_to_num"
        )
    if intensity_range is None:
        intensity_range = _full_range(values, name)

    low, high = intensity_range
    if not high > low:
        raise ImageError(
            f"{name}: expected intensity_range=(low, high) with low < high, got ({low:g}, {high:g})"
        )

    scaled = np.empty(values.shape, np.uint8)
    wide = np.float64 if values.dtype.itemsize > 2 and kind in "ui" else np.float32
    for start in range(0, len(values), _ROWS):  # whole, it would take four times the memory
        part = (values[start : start + _ROWS].astype(wide) - low) * (255 / (high - low))
        scaled[start : start + _ROWS] = np.clip(part + 0.5, 0, 255)
    return scaled


def _warn_of_fewer_bits(high: int) -> None:
    """Warns of 16-bit values as cameras with fewer bits give them: almost black in the full range.

    The text names no file, so that it is shown once.
    """
    most = 2 ** high.bit_length() - 1
    if 0 < most <= _CAMERA:
        warnings.warn(
            f"16-bit values of at most {most:,} in an image are almost black in the full range of "
            "65,535; a Predictor takes the range of all images, such as intensity_range="
            f"(0, {most}), which is --intensity-range 0 {most} of predict and serve",
            ImageWarning,
            stacklevel=2,
        )


def _full_range(values: np.ndarray, name: str) -> tuple[float, float]:
    """The values of black and white where no range is given.

    Raises:
        ImageError: the values lie outside that range, or are more likely those of another type.
    """
    low = values.min().item()
    high = values.max().item()
    if values.dtype == np.uint16:
        if not 0 < high <= 255:
            _warn_of_fewer_bits(high)
            return 0.0, 65535.0
        raise UnusualValuesError(
            f"{name}: uint16 values of only {low} to {high} would be almost black",
            "save them with 8 bits (array.astype(numpy.uint8))",
        )

    full = (0.0, 1.0) if values.dtype.kind == "f" else (0.0, 255.0)
    if low < full[0] or high > full[1]:
        raise UnusualValuesError(
            f"{name}: expected {values.dtype} values in {full[0]:g}..{full[1]:g}, "
            f"got {low:g} to {high:g}",
            "scale the values to this range",
        )
    return full
