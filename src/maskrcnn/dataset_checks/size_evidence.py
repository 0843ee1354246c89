"""Which size an image was annotated at: `annotated_at(objects, size, other) -> bool`.

In:  the annotations of an image, the size in the annotation file and the size of the image file.
Out: whether the annotations prove the size of the image file. Where they do not, it stays open.

    RLE with a size                 proves that size, and contradicts any other
    RLE without a size              the same for the number of pixels
    box, polygon, keypoint          contradicts a size beyond which it reaches; a little more than
                                    that is common, so it proves the other size only from 5 % on
    image of another scale          an object must lie outside the annotated size as a whole, since
                                    objects that are cut off may be annotated beyond the image
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..annotations import rle as coco_rle
from ..annotations.annotation import BoxXYXY, is_number
from ..annotations.coco_types import Json, JsonObject

# An object that reaches farther beyond a size than both was annotated at another size.
_BEYOND_PIXELS = 3.0
_BEYOND_SHARE = 0.05

# Sizes whose aspect ratios differ by less are one image at two scales.
_SAME_RATIO = 0.02

_EDGE = 1.0  # pixels beyond the edge that count as inside


def annotated_at(objects: Sequence[JsonObject], size: tuple[int, int], other: Json) -> bool:
    """Returns whether objects prove that they were annotated at a size.

    Args:
        objects: all annotations of the image.
        size: (height, width) of the image file.
        other: (height, width) as annotated, which differs.
    """
    fits = [_rle_fits(a.get("segmentation"), size) for a in objects]
    extents = [extent for a in objects for extent in _extents(a)]
    if False in fits or any(_overshoot(extent, size) > _EDGE for extent in extents):
        return False
    if any(
        fit and not _rle_fits(a.get("segmentation"), other)
        for fit, a in zip(fits, objects, strict=True)
    ):
        return True

    boxes = [_extent_of_box(a) for a in objects if not _reads_as_corners(a, other)]
    shapes = [extent for a in objects for extent in _extents(a, with_box=False)]
    return any(_is_beyond(extent, other, size) for extent in (*boxes, *shapes) if extent)


def may_be_annotated_at(objects: Sequence[JsonObject], size: tuple[int, int]) -> bool:
    """Returns whether nothing in the objects contradicts a size."""
    if any(_rle_fits(a.get("segmentation"), size) is False for a in objects):
        return False
    tolerance = max(_BEYOND_PIXELS, _BEYOND_SHARE * min(size))
    return all(_overshoot(e, size) <= tolerance for a in objects for e in _extents(a))


def _rle_fits(mask: Json, size: tuple[int, int]) -> bool | None:
    """Whether an RLE is of a size; None for any other mask, or one that is broken."""
    if isinstance(mask, list) and len(mask) == 1:
        mask = mask[0]
    if not isinstance(mask, Mapping):
        return None
    given = mask.get("size")
    if given is not None:
        return isinstance(given, list | tuple) and list(given) == list(size)
    return fills(mask, size)


def fills(mask: JsonObject, size: tuple[int, int]) -> bool:
    """Returns whether the runs of an RLE cover exactly an image of a size."""
    try:
        coco_rle.counts({"size": list(size), "counts": mask.get("counts")})
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _extents(raw: JsonObject, with_box: bool = True) -> list[BoxXYXY]:
    """The bounds of box, polygons and labeled keypoints; those that are broken are left out."""
    found = [_extent_of_box(raw)] if with_box else []
    mask = raw.get("segmentation")
    if isinstance(mask, list):
        flat = [mask] if all(map(is_number, mask)) else mask
        found += [_extent_of_points(part, 2) for part in flat]
    found.append(_extent_of_points(raw.get("keypoints"), 3))
    return [extent for extent in found if extent is not None]


def _extent_of_box(raw: JsonObject) -> BoxXYXY | None:
    box = raw.get("bbox")
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        return None
    x, y, width, height = box
    return (x, y, x + width, y + height) if width >= 0 and height >= 0 else None


def _extent_of_points(values: Json, step: int) -> BoxXYXY | None:
    """The bounds of x, y, x, y, ..., or of x, y, visibility, ... where that is above 0."""
    if (
        not isinstance(values, list | tuple)
        or not values
        or len(values) % step
        or not all(map(is_number, values))
    ):
        return None
    points = np.array(values, dtype=np.float64).reshape(-1, step)
    if step == 3:
        points = points[points[:, 2] > 0]
    if len(points) == 0:
        return None
    (x0, y0), (x1, y1) = points[:, :2].min(axis=0).tolist(), points[:, :2].max(axis=0).tolist()
    return x0, y0, x1, y1


def _overshoot(extent: BoxXYXY, size: tuple[int, int]) -> float:
    return max(extent[2] - size[1], extent[3] - size[0])


def _reads_as_corners(raw: JsonObject, size: tuple[int, int]) -> bool:
    """Whether a box lies inside an image of a size if it is read as x0, y0, x1, y1."""
    if _extent_of_box(raw) is None:
        return False
    x0, y0, x1, y1 = raw["bbox"]
    return x0 < x1 <= size[1] + _EDGE and y0 < y1 <= size[0] + _EDGE


def _is_beyond(extent: BoxXYXY, annotated: tuple[int, int], of_file: tuple[int, int]) -> bool:
    """Whether an object cannot have been annotated at the annotated size."""
    x0, y0, x1, y1 = extent
    height, width = annotated
    ratio = (height * of_file[1]) / (width * of_file[0])
    if abs(ratio - 1) < _SAME_RATIO:
        return x0 >= width + _EDGE or y0 >= height + _EDGE
    return x1 > width + max(_BEYOND_PIXELS, _BEYOND_SHARE * width) or y1 > height + max(
        _BEYOND_PIXELS, _BEYOND_SHARE * height
    )
