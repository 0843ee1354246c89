"""One annotation mended where there is one right answer: `mend(raw, ..) -> raw or None`.

What is kept, what is changed:
    a flat list of coordinates           one polygon
    polygons and RLE without area        left out; without anything else the annotation is dropped
    RLE without size                     gets the image's, if its runs fill it
    a box that is none, or has no area,  becomes the one around the mask; without a mask an object of no size is dropped, one of keypoints loses the box
      or lies outside
    a box x0, y0, x1, y1                 is rewritten where the mask proves it
    a box beyond the image             is clipped, or becomes the one around a mask that is elsewhere
    a keypoint outside the image          becomes unlabeled
    area, num_keypoints                  are counted anew where they are wrong, or what they count has changed
Everything else stays as it is, all other fields too; numbers that say nothing wrong are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..annotations import rle as coco_rle
from ..annotations.annotation import (
    KEYPOINT_OFFSET,
    Annotation,
    BoxXYXY,
    ProblemReporter,
    far_apart,
    is_number,
    mask_bounds,
    read_annotation,
)
from ..config import Category

_EXACT = (
    2.0  # px, within which a box read another way must lie around its mask to prove that reading
)


def mend(
    raw: Mapping[str, Any], size: tuple[int, int], category: Category, report: ProblemReporter
) -> dict[str, Any] | None:
    """Mends an annotation.

    Args:
        raw: the JSON object; it stays as it is.
        size: (height, width) of the image.
        category: as it is in the file.
        report: hears what is done, as of what is wrong when annotations are read.

    Returns:
        The mended object, None where nothing is left of it.
    """
    new = dict(raw)

    def done(kind: str, detail: str, what: str) -> None:
        report(kind, detail, what, False)

    _mend_mask(new, size, done)
    _mend_keypoints(new, category, size, done)
    read = _read(new, size, category)
    around = _clipped(mask_bounds(read), size)
    if not _mend_box(new, read, around, size, done):
        return None
    _mend_area(new, raw, _read(new, size, category), size, category, done)
    return new


def _read(raw: Mapping[str, Any], size: tuple[int, int], category: Category) -> Annotation:
    return read_annotation(raw, 0, category, range(len(category.keypoints)), size, lambda *_: None)


def _mend_mask(new: dict[str, Any], size: tuple[int, int], done: Any) -> None:
    given = new.get("segmentation")
    if (
        isinstance(given, list)
        and len(given) >= 6
        and len(given) % 2 == 0
        and all(map(is_number, given))
    ):
        new["segmentation"] = given = [given]
        done(
            "segmentation format not recognized",
            f"{len(given[0]) // 2} points",
            "they are one polygon now",
        )
    if isinstance(given, list) and given and all(isinstance(part, list) for part in given):
        kept = [part for part in given if not _flat(part)]
        if len(kept) < len(given):
            new["segmentation"] = kept
            done(
                "polygon without area",
                f"{len(given) - len(kept)} of {len(given)} polygons",
                "they were left out",
            )
    if (
        isinstance(given, Mapping)
        and given.get("size") is None
        and "counts" in given
        and _fills(given, size)
    ):
        new["segmentation"] = given = {
            "size": list(size),
            **{k: v for k, v in given.items() if k != "size"},
        }
        done("RLE size mismatch", "it had none", "it has the image's now")
    if (
        isinstance(given, Mapping)
        and given.get("size") in (list(size), tuple(size))
        and _fills(given, size)
        and coco_rle.area(given) == 0
    ):
        new["segmentation"] = []
        done("empty mask", "the RLE held no pixel", "the mask was left out")


def _flat(part: list[Any]) -> bool:
    if len(part) % 2 or not all(map(is_number, part)):
        return False  # broken in another way
    points = np.array(part, dtype=np.float64).reshape(-1, 2)
    return len(points) < 3 or not (points.max(axis=0) > points.min(axis=0)).all()


def _fills(rle: Mapping[str, Any], size: tuple[int, int]) -> bool:
    try:
        coco_rle.counts({"size": list(size), "counts": rle.get("counts")})
    except (ValueError, TypeError):
        return False
    return True


def _mend_keypoints(
    new: dict[str, Any], category: Category, size: tuple[int, int], done: Any
) -> None:
    given = new.get("keypoints")
    if (
        not isinstance(given, list)
        or not given
        or len(given) != 3 * len(category.keypoints)
        or not all(map(is_number, given))
    ):
        return
    keypoints = np.array(given, dtype=np.float64).reshape(-1, 3)
    if not np.isin(keypoints[:, 2], (0, 1, 2)).all():
        return
    outside = (keypoints[:, 2] > 0) & (
        (keypoints[:, :2] < -KEYPOINT_OFFSET) | (keypoints[:, :2] > (size[1], size[0]))
    ).any(axis=1)
    if outside.any():
        new["keypoints"] = [0 if outside[n // 3] else v for n, v in enumerate(given)]
        done(
            "keypoint outside the image",
            ", ".join(np.array(category.keypoints)[outside]),
            "it is unlabeled now",
        )
    count = int(((keypoints[:, 2] > 0) & ~outside).sum())
    if new.get("num_keypoints", count) != count:
        done(
            "num_keypoints is wrong",
            f"it was {new['num_keypoints']!r}",
            "the labeled keypoints were counted",
        )
        new["num_keypoints"] = count


def _mend_box(
    new: dict[str, Any], read: Annotation, around: BoxXYXY | None, size: tuple[int, int], done: Any
) -> bool:
    """False where nothing is left of the object."""
    given = new.get("bbox")
    if given is None or given == []:
        if read.empty and _said_and_empty(new):
            done("object without area", "the mask was all that it had", "it was dropped")
            return False
        return True
    proper = isinstance(given, list | tuple) and len(given) == 4 and all(map(is_number, given))
    if not proper and around is None:
        return True
    x, y, width, height = given if proper else (0, 0, -1, -1)
    right, bottom = min(x + width, size[1]), min(y + height, size[0])
    left, top = max(x, 0), max(y, 0)
    lost = not proper or width <= 0 or height <= 0 or left >= right or top >= bottom
    if around is not None and _reads_as_corners(given if proper else None, around):
        _set_box(
            new,
            (given[0], given[1], given[2], given[3]),
            "box is x0, y0, x1, y1",
            "it is x, y, width, height now, as its mask shows",
            done,
        )
    elif lost and around is not None:
        _set_box(
            new,
            around,
            "box without area" if proper else "box is not four numbers",
            "it is the one around the mask now",
            done,
        )
    elif lost and min(width, height) == 0 and max(width, height) >= 0:
        done(
            "box without area",
            f"bbox was {list(given)}",
            "it was left out" if read.keypoints is not None else "the object was dropped",
        )
        if read.keypoints is None:
            return False
        del new["bbox"]
    elif not lost and max(left - x, top - y, x + width - right, y + height - bottom) > 0:
        if around is not None and far_apart((left, top, right, bottom), around):
            _set_box(
                new,
                around,
                "box reaches beyond the image",
                "it is the one around the mask now",
                done,
            )
        else:
            _set_box(
                new,
                (left, top, right, bottom),
                "box reaches beyond the image",
                "it was clipped",
                done,
            )
    return True


def _clipped(box: BoxXYXY | None, size: tuple[int, int]) -> BoxXYXY | None:
    """What of a box lies in the image."""
    if box is None:
        return None
    x0, y0, x1, y1 = (
        max(box[0], 0.0),
        max(box[1], 0.0),
        min(box[2], float(size[1])),
        min(box[3], float(size[0])),
    )
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _said_and_empty(new: Mapping[str, Any]) -> bool:
    """There is a list for a mask, and nothing (any more) in it."""
    return new.get("segmentation") == [] and not any(new.get("keypoints") or ())


def _reads_as_corners(given: Any, around: BoxXYXY) -> bool:
    if given is None:
        return False
    x, y, width, height = given
    as_corners = np.abs(np.subtract(given, around)).max()
    as_sides = np.abs(np.subtract((x, y, x + width, y + height), around)).max()
    return bool(as_corners <= _EXACT < as_sides)


def _set_box(new: dict[str, Any], corners: BoxXYXY, kind: str, what: str, done: Any) -> None:
    x0, y0, x1, y1 = corners
    done(kind, f"bbox was {new['bbox']!r:.80}", what)
    new["bbox"] = [x0, y0, x1 - x0, y1 - y0]


def _mend_area(
    new: dict[str, Any],
    raw: Mapping[str, Any],
    read: Annotation,
    size: tuple[int, int],
    category: Category,
    done: Any,
) -> None:
    if "area" not in raw:
        return
    wrong: list[str] = []
    read_annotation(
        new, 0, category, range(len(category.keypoints)), size, lambda kind, *_: wrong.append(kind)
    )
    reshaped = (
        read.mask_area is None and new.get("bbox") != raw.get("bbox") and bool(new.get("bbox"))
    )
    if "area is wrong" not in wrong and not reshaped:
        return
    if read.box is None and read.mask_area is None:
        return
    x0, y0, x1, y1 = read.box or (0.0, 0.0, 0.0, 0.0)
    area = (x1 - x0) * (y1 - y0) if read.mask_area is None else read.mask_area
    done(
        "area is wrong",
        f"it was {raw['area']!r:.40}",
        "it is that of the mask now" if read.mask_area is not None else "it is that of the box now",
    )
    new["area"] = area
