"""Images whose values are the ids of objects: read, taken apart, and painted.

In: a PNG of 8 or 16 bits, with a palette, or RGB-coded. Out: ids [H, W], and one RLE for each.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image

from ..annotations import rle as coco_rle

Ids = Integer[np.ndarray, "H W"]


def read_ids(path: Path) -> Ids:
    """Ids of a file; those of an RGB one are R + 256 G + 65536 B, as in COCO panoptic, so that each color is an object.

    Raises:
        ValueError: no image, or values that are no ids.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("RGB", "RGBA"):
                red, green, blue = (np.asarray(image.getchannel(c), dtype=np.int64) for c in "RGB")
                return red + 256 * green + 65536 * blue
            values = np.asarray(image.getchannel("L") if image.mode == "LA" else image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name}: cannot be read as an image: {error}") from None
    if values.dtype.kind == "f":
        raise ValueError(
            f"{path.name}: has floating point values, must be whole-number ids; save it as 8 or 16 bits"
        )
    return values.astype(np.int64)


def read_mask(path: Path) -> dict[str, Any] | None:
    """The RLE of all that is not 0 in a file; None where it is empty.

    Raises:
        ValueError: no image.
    """
    try:
        with Image.open(path) as image:
            plain = (
                image.convert("RGB")
                if image.mode == "RGBA"
                else image.convert("L")
                if image.mode == "LA"
                else image
            )
            box = plain.getbbox()
            values = np.asarray(plain.crop(box)) if box else np.zeros((0, 0))
            size = (image.height, image.width)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name}: cannot be read as an image: {error}") from None
    crop = (values.max(axis=2) if values.ndim == 3 else values) > 0
    return coco_rle.encode_crop(crop, box[0], box[1], size) if box else None


def objects_of(ids: Ids, without: Iterable[int] = ()) -> dict[int, dict[str, Any]]:
    """The RLE of each id but 0, in their order."""
    height, width = ids.shape
    flat = ids.T.reshape(-1)
    places = np.flatnonzero(flat)
    places = places[np.argsort(flat[places], kind="stable")]
    found, starts = np.unique(flat[places], return_index=True)
    masks = {}
    for one, part in zip(found.tolist(), np.split(places, starts)[1:], strict=True):
        if one in without:
            continue
        x, y = np.divmod(part, height)
        x0, y0 = int(x[0]), int(y.min())
        crop = np.zeros((int(y.max()) - y0 + 1, int(x[-1]) - x0 + 1), bool)
        crop[y - y0, x - x0] = True
        masks[one] = coco_rle.encode_crop(crop, x0, y0, (height, width))
    return masks


def paint(masks: Mapping[int, dict[str, Any]], size: tuple[int, int]) -> tuple[Ids, list[int]]:
    """A map of ids, smaller objects above larger ones, and the ids of which something is covered."""
    ids = np.zeros(size, np.int64)
    crops = {one: coco_rle.decode_crop(rle) for one, rle in masks.items()}
    areas = {one: int(crop.sum()) for one, (crop, _, _) in crops.items()}
    for one in sorted(crops, key=lambda one: -areas[one]):
        crop, x0, y0 = crops[one]
        ids[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = one
    left = np.bincount(ids.reshape(-1), minlength=max(masks, default=0) + 1)
    return ids, [one for one in masks if left[one] < areas[one]]


def png(ids: Ids, palette: bool = False, deep: bool = False) -> bytes:
    """A PNG of ids: 8 bits (with VOC's colors), or 16 where they need it or where it is asked for (`deep`), or RGB-coded."""
    most = int(ids.max(initial=0))
    if most > 65535:
        image = Image.fromarray(
            np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
        )
    else:
        image = Image.fromarray(ids.astype(np.uint8 if most < 256 and not deep else np.uint16))
    if palette and image.mode == "L":
        image.putpalette(voc_colors().reshape(-1).tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def black_and_white(rle: Mapping[str, Any]) -> bytes:
    """A PNG of one mask: 255 inside, 0 outside."""
    crop, x0, y0 = coco_rle.decode_crop(rle)
    image = Image.new("L", (rle["size"][1], rle["size"][0]))
    image.paste(Image.fromarray(crop.astype(np.uint8) * 255), (x0, y0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@cache
def voc_colors() -> np.ndarray:
    """[256, 3], the colors of Pascal VOC's palette: the bits of the index spread over those of R, G, B from the highest on."""
    index = np.arange(256)[:, None]
    bits = [
        (index >> np.array([3 * place, 3 * place + 1, 3 * place + 2]) & 1) << (7 - place)
        for place in range(8)
    ]
    return np.sum(bits, axis=0).astype(np.uint8)
