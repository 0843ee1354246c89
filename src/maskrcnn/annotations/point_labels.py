"""Labeled points instead of masks: random points in each box, each on the object or beside it.

In:  COCO content whose objects have masks.
Out: the same with `point_coords` and `point_labels` in the place of the masks.

Clicking ten such points takes a person about a tenth of the time of a polygon. Here they are made
from masks, to see what a data set annotated in this way would reach.

Source: Cheng, Parkhi and Kirillov 2022, "Pointly-Supervised Instance Segmentation" (arXiv
2104.06404), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from jaxtyping import Bool

from . import rle as coco_rle
from .coco_types import RLE, CocoAnnotation, CocoContent, Json

_HALF = 128  # of 255: a pixel belongs to what covers half of it


def with_points(content: CocoContent, count: int) -> CocoContent:
    """Replaces each mask by labeled points.

    The points are drawn uniformly among the pixels of the object's box, with the annotation's id as
    the seed, so that the same file gets the same points. Regions to ignore keep their masks.

    Args:
        content: annotations, with masks where there are any; a mask without a box gets the box
            around it.
        count: points per object; a box of fewer pixels gets one for each of them.

    Raises:
        ValueError: `count` is less than 1.

    Example:
        >>> from maskrcnn.annotations.point_labels import with_points
        >>> image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
        >>> square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4]}
        >>> square["segmentation"] = [[2, 2, 6, 2, 6, 6, 2, 6]]
        >>> content = {"images": [image], "annotations": [square], "categories": []}
        >>> with_points(content, 3)["annotations"][0]["point_labels"]
        [1, 1, 1]
    """
    if count < 1:
        raise ValueError(f"points: expected at least 1 per object, got {count}")
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations = [_pointed(a, sizes[a["image_id"]], count) for a in content["annotations"]]
    return {**content, "annotations": annotations}


def _pointed(annotation: CocoAnnotation, size: tuple[int, int], count: int) -> CocoAnnotation:
    segmentation = annotation.get("segmentation")
    if not segmentation or annotation.get("iscrowd"):
        return annotation
    if isinstance(segmentation, list) and not any(segmentation):
        return annotation

    # The box in whole pixels, inside the image.
    box = annotation.get("bbox") or _box_around(segmentation)
    x, y, width, height = box
    left = min(max(int(np.floor(x)), 0), size[1] - 1)
    top = min(max(int(np.floor(y)), 0), size[0] - 1)
    right = max(min(int(np.ceil(x + width)), size[1]), left + 1)
    bottom = max(min(int(np.ceil(y + height)), size[0]), top + 1)
    on_object = _pixels(segmentation, (left, top, right, bottom))

    rng = np.random.default_rng(abs(annotation["id"]))
    chosen = rng.choice(on_object.size, size=min(count, on_object.size), replace=False)
    rows, columns = np.divmod(chosen, right - left)
    pointed: dict[str, Json] = {**annotation, "bbox": box}  # points without a box are not used
    del pointed["segmentation"]
    pointed["point_coords"] = np.stack([left + columns, top + rows], axis=1).tolist()
    pointed["point_labels"] = on_object[rows, columns].astype(int).tolist()
    return cast("CocoAnnotation", pointed)


def _box_around(segmentation: list[list[float]] | RLE) -> list[float]:
    """The box around a mask as x, y, width, height."""
    if isinstance(segmentation, Mapping):
        x0, y0, x1, y1 = coco_rle.bbox(segmentation)
        return [x0, y0, x1 - x0, y1 - y0]
    x = [value for polygon in segmentation for value in polygon[0::2]]
    y = [value for polygon in segmentation for value in polygon[1::2]]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def _pixels(
    segmentation: list[list[float]] | RLE, box: tuple[int, int, int, int]
) -> Bool[np.ndarray, "h w"]:
    """The pixels of a box that belong to an object: those of which it covers half."""
    left, top, right, bottom = box
    if isinstance(segmentation, Mapping):
        crop, x0, y0 = coco_rle.decode_crop(segmentation)
        pixels = np.zeros((bottom - top, right - left), bool)
        rows = np.arange(max(top, y0), min(bottom, y0 + crop.shape[0]))
        columns = np.arange(max(left, x0), min(right, x0 + crop.shape[1]))
        pixels[np.ix_(rows - top, columns - left)] = crop[np.ix_(rows - y0, columns - x0)]
        return pixels

    side = max(right - left, bottom - top)
    polygons = [np.array(values, dtype=np.float64).reshape(-1, 2) for values in segmentation]
    square = coco_rle.polygon_coverage(polygons, (left, top, left + side, top + side), side)
    return square[: bottom - top, : right - left] >= _HALF
