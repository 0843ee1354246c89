"""Masks written as a list with RLEs in it, as some tools write them: `unite_parts(segmentation)`.

COCO has a list of polygons or one RLE. A list of several RLEs, or of RLEs and polygons, can only
mean their union.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import rle as coco_rle
from .coco_types import RLE, Json
from .contours import fill, union
from .shown_values import shown

_MOST = 1e7  # pixels of a coordinate; filling takes memory for each pixel of an edge


def has_rle_parts(segmentation: Json) -> bool:
    """Whether a segmentation is a list with at least one object in it."""
    return isinstance(segmentation, list) and any(isinstance(p, Mapping) for p in segmentation)


def unite_parts(segmentation: Sequence[Json]) -> RLE:
    """The union of RLEs of one size, and of polygons.

    Args:
        segmentation: the parts, at least one of them an object.

    Raises:
        ValueError: a part is neither, or the RLEs have different sizes; the message names it.
    """
    sizes = {n: p.get("size") for n, p in enumerate(segmentation) if isinstance(p, Mapping)}
    first, size = next(iter(sizes.items()))
    other = next((n for n, given in sizes.items() if given != size), None)
    if other is not None:
        raise ValueError(
            f"part {other} has the size {shown(sizes[other], 40)}, "
            f"part {first} has {shown(size, 40)}"
        )

    is_size = isinstance(size, list | tuple) and list(map(type, size)) == [int, int]
    is_size = is_size and min(size) > 0
    if not is_size:
        raise ValueError(f"part {first}: expected size as [height, width], got {shown(size, 40)}")

    rles = []
    for index, part in enumerate(segmentation):
        try:
            rles.append(_rle_of(part, size))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"part {index}: {reason}") from None
    return rles[0] if len(rles) == 1 else union(rles, (size[0], size[1]))


def _rle_of(part: Json, size: Json) -> RLE:
    """One part as an RLE of the same size."""
    if isinstance(part, Mapping):
        coco_rle.counts(part)
        return {"size": list(part["size"]), "counts": part["counts"]}
    points = np.array(part, dtype=np.float64)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not (abs(points) <= _MOST).all():
        raise ValueError(f"expected an RLE object or a polygon [x, y, ...], got {shown(part, 40)}")
    return fill([points.reshape(-1, 2)], (size[0], size[1]))
