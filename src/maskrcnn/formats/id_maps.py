"""Images whose values are object ids: reading them, taking them apart, and painting them.

In: an image of 8, 16 or 32 bits, with a palette, or RGB-coded; or a .npy file. Floating-point
values must be whole. Out: ids [H, W], and one RLE for each id.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from PIL import Image

from ..annotations import rle as coco_rle
from ..annotations.coco_types import RLE
from ..images.open_image import open_image
from ..images.read import read_stored

Ids = Integer[np.ndarray, "H W"]
MOST_MASK = 400_000_000
"""Bound of the pixels of a label map, and of a mask that a tool writes pixel by pixel."""


def read_ids(path: Path) -> Ids:
    """The ids of a file.

    In an RGB file an id is R + 256 G + 65536 B, as in COCO panoptic: each color is an object.

    Raises:
        ValueError: the file is not an image or array, or its values are not whole numbers.
    """
    if path.suffix.lower() == ".npy":
        return _whole(_read_array(path), path)

    values = read_stored(path)
    if values.ndim == 3 and values.shape[2] >= 3:
        red, green, blue = np.moveaxis(values[:, :, :3].astype(np.int64), 2, 0)
        return red + 256 * green + 65536 * blue
    if values.ndim == 3:  # gray and alpha
        values = values[:, :, 0]
    return _whole(values, path)


def _read_array(path: Path) -> np.ndarray:
    """The array of a .npy file, which may hold no Python objects, because these run code."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, OverflowError) as error:
        raise ValueError(
            f"{path.name}: cannot be read as an array: {error}; "
            "save it with numpy.save as whole numbers [height, width]"
        ) from None

    shape = values.shape
    values = values.reshape([side for side in shape if side != 1] if len(shape) > 2 else shape)
    if values.ndim != 2 or values.dtype.kind not in "buif" or values.size > MOST_MASK:
        raise ValueError(
            f"{path.name}: expected numbers [height, width] of at most {MOST_MASK:,} "
            f"pixels, got {values.dtype} {list(shape)}"
        )
    return values


def _whole(values: np.ndarray, path: Path) -> Ids:
    """The values as whole numbers of 0 and more."""
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.rint(values))).all():
        raise ValueError(
            f"{path.name}: expected whole-number ids, got floating-point values with fractions; "
            "save the label map, not probabilities or gray values"
        )
    if values.dtype.kind in "if" and values.size and values.min() < 0:
        raise ValueError(
            f"{path.name}: expected ids of 0 (background) and more, got {values.min():g}; "
            "set other pixels to 0"
        )
    return values.astype(np.int64)


def read_mask(path: Path) -> RLE | None:
    """The RLE of all non-zero pixels of a file; None if there are none.

    Raises:
        ValueError: the file is not an image or array.
    """
    if path.suffix.lower() == ".npy":
        ids = read_ids(path)
        return coco_rle.encode(ids > 0) if ids.any() else None

    with open_image(path) as image:
        size = (image.height, image.width)
        opaque = _without_alpha(image)
        box = opaque.getbbox()
        if box is None:
            return None
        values = np.asarray(opaque)[box[1] : box[3], box[0] : box[2]]
    crop = (values.max(axis=2) if values.ndim == 3 else values) > 0
    return coco_rle.encode_crop(crop, box[0], box[1], size)


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        return image.convert("RGB")
    return image.convert("L") if image.mode == "LA" else image


def objects_of(ids: Ids, without: Iterable[int] = ()) -> dict[int, RLE]:
    """The RLE of each id except 0 and those in `without`, sorted by id."""
    height, width = ids.shape
    flat = ids.T.reshape(-1)  # column by column, as RLE counts

    # One stable sort groups the pixels by id and keeps their order within each.
    pixels = np.flatnonzero(flat)
    pixels = pixels[np.argsort(flat[pixels], kind="stable")]
    values, starts = np.unique(flat[pixels], return_index=True)

    masks = {}
    for object_id, part in zip(values.tolist(), np.split(pixels, starts)[1:], strict=True):
        if object_id in without:
            continue
        x, y = np.divmod(part, height)
        x0 = int(x[0])
        y0 = int(y.min())
        crop = np.zeros((int(y.max()) - y0 + 1, int(x[-1]) - x0 + 1), bool)
        crop[y - y0, x - x0] = True
        masks[object_id] = coco_rle.encode_crop(crop, x0, y0, (height, width))
    return masks


def paint(masks: Mapping[int, RLE], size: tuple[int, int]) -> tuple[Ids, list[int]]:
    """Paints masks into a map of ids, smaller objects above larger ones.

    Returns:
        The map, and the ids of the objects that are partly covered.
    """
    ids = np.zeros(size, np.int64)
    crops = {object_id: coco_rle.decode_crop(rle) for object_id, rle in masks.items()}
    areas = {object_id: int(crop.sum()) for object_id, (crop, _, _) in crops.items()}

    for object_id in sorted(crops, key=lambda key: -areas[key]):
        crop, x0, y0 = crops[object_id]
        ids[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = object_id

    visible = np.bincount(ids.reshape(-1), minlength=max(masks, default=0) + 1)
    return ids, [object_id for object_id in masks if visible[object_id] < areas[object_id]]


def png(ids: Ids, palette: bool = False, deep: bool = False) -> bytes:
    """A PNG of ids: 8 bits where they suffice, else 16, else RGB-coded.

    Args:
        ids: the map.
        palette: add VOC's colors to a map of 8 bits.
        deep: write 16 bits even where 8 would suffice.
    """
    largest = int(ids.max(initial=0))
    if largest > 65535:
        channels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2)
        image = Image.fromarray(channels.astype(np.uint8))
    else:
        image = Image.fromarray(ids.astype(np.uint8 if largest < 256 and not deep else np.uint16))
    if palette and image.mode == "L":
        image.putpalette(voc_colors().reshape(-1).tolist())
    return _png(image)


def black_and_white(rle: RLE) -> bytes:
    """A PNG of one mask: 255 inside, 0 outside."""
    crop, x0, y0 = coco_rle.decode_crop(rle)
    image = Image.new("L", (rle["size"][1], rle["size"][0]))
    image.paste(Image.fromarray(crop.astype(np.uint8) * 255), (x0, y0))
    return _png(image)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@cache
def voc_colors() -> np.ndarray:
    """[256, 3], the colors of Pascal VOC's palette.

    The bits of the index, in groups of three, become bits of R, G and B from the highest on.
    """
    index = np.arange(256)[:, None]
    bits = [
        (index >> np.array([3 * group, 3 * group + 1, 3 * group + 2]) & 1) << (7 - group)
        for group in range(8)
    ]
    return np.sum(bits, axis=0).astype(np.uint8)
