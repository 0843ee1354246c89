"""Fixes one annotation where the fix is unambiguous: `fix_annotation(raw, size, category)`.

    flat list of coordinates,       becomes polygons
      points [[x, y], ...]
    RLE in a list or as text        becomes an RLE object
    polygon or RLE without area     is removed; if nothing else is left, the annotation is dropped
    RLE without size                gets the image's size, if its runs fill the image
    box that is broken, flat or     becomes the box around the mask. Without a mask, a flat box is
      outside the image             removed from an object with keypoints; any other is dropped
    box x0, y0, x1, y1              is rewritten where the mask proves it
    box beyond the image            is clipped, or becomes the box around a mask that is elsewhere
    keypoint outside the image      becomes unlabeled
    area, num_keypoints             are recomputed if wrong, or if what they measure has changed

Everything else stays as it is, including unknown fields and values that are not wrong. A fix is
made only if the annotation then has fewer problems and no new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np

from ..annotations import rle as coco_rle
from ..annotations.annotation import (
    KEYPOINT_OFFSET,
    Annotation,
    BoxXYXY,
    far_apart,
    is_number,
    mask_bounds,
    read_annotation,
)
from ..annotations.coco_types import Json, JsonObject
from ..config import Category
from ..runtime.counted import counted
from .size_evidence import fills

# A box in another format must match its mask within this many pixels to prove that format.
_EXACT = 2.0

Change = tuple[str, str, str]
"""Kind of problem, old state, what was changed."""
ChangeReporter = Callable[[str, str, str], None]
"""Called with the parts of each `Change`."""


def fix_annotation(
    raw: JsonObject, size: tuple[int, int], category: Category
) -> tuple[dict[str, Json] | None, list[Change]]:
    """Fixes an annotation.

    Args:
        raw: the JSON object; it is not modified.
        size: (height, width) of the image.
        category: the annotation's category, as in the file.

    Returns:
        The fixed object, None if nothing is left of it; and the changes.
    """
    before = _problems(raw, size, category)
    new, changes = _fixed(raw, size, category, with_mask=True)
    if new is None or _is_better(_problems(new, size, category), before):
        return new, changes

    # A box set to its mask may leave out a keypoint; the box is then fixed without the mask.
    if raw.get("keypoints"):
        new, changes = _fixed(raw, size, category, with_mask=False)
        if new is not None and _is_better(_problems(new, size, category), before):
            return new, changes
    return dict(raw), []


def _fixed(
    raw: JsonObject, size: tuple[int, int], category: Category, with_mask: bool
) -> tuple[dict[str, Json] | None, list[Change]]:
    """The annotation with every fix, None if it must be dropped; and the changes."""
    changes: list[Change] = []

    def report(kind: str, detail: str, what: str) -> None:
        changes.append((kind, detail, what))

    new = dict(raw)
    _fix_format(new, size, report)
    _fix_mask(new, size, report)
    _fix_keypoints(new, category, size, report)

    read = _read(new, size, category)
    around = _clipped(mask_bounds(read), size) if with_mask else None
    if not _fix_box(new, read, around, size, report):
        return None, changes

    _fix_area(new, raw, size, category, report)
    return new, changes


def _problems(
    raw: JsonObject, size: tuple[int, int], category: Category
) -> tuple[set[str], set[str]]:
    """The kinds of errors and of warnings that reading an annotation reports."""
    found: tuple[set[str], set[str]] = (set(), set())
    order = range(len(category.keypoints))

    def add(kind: str, detail: str, suggestion: str, is_error: bool) -> None:
        found[0 if is_error else 1].add(kind)

    read_annotation(raw, 0, category, order, size, add)
    return found


def _is_better(after: tuple[set[str], set[str]], before: tuple[set[str], set[str]]) -> bool:
    """Whether problems are gone and none is new; an error may have hidden warnings."""
    if after[0] == before[0]:
        return after[1] < before[1]
    return after[0] < before[0]


def _read(raw: JsonObject, size: tuple[int, int], category: Category) -> Annotation:
    return read_annotation(raw, 0, category, range(len(category.keypoints)), size, lambda *_: None)


def _fix_format(new: dict[str, Json], size: tuple[int, int], report: ChangeReporter) -> None:
    """Rewrites a mask that is written in another way than COCO's."""
    kind = "segmentation format not recognized"
    given = new.get("segmentation")

    if isinstance(given, str):
        given = _parsed(given, size)
        if given is None:
            return
        new["segmentation"] = given
        report(kind, "it was text", "read from the text")

    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], Mapping):
        if "counts" in given[0]:
            new["segmentation"] = given[0]
            report(kind, "an RLE in a list", "taken out of the list")
        return

    polygons = _as_polygons(given)
    if polygons is not None:
        new["segmentation"] = polygons
        points = counted(sum(map(len, polygons)) // 2, "point")
        count = counted(len(polygons), "polygon")
        report(kind, points, f"converted to {count}")


def _parsed(text: str, size: tuple[int, int]) -> Json:
    """A mask written as text: JSON, or the counts of a compressed RLE; None for any other text."""
    if text.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if value is not None:
            return value
    rle = {"size": list(size), "counts": text}
    return rle if fills(rle, size) else None


def _as_polygons(mask: Json) -> list[list[Json]] | None:
    """Polygons that are written as points or as one flat list; None for anything else."""
    if not isinstance(mask, list):
        return None
    if len(mask) >= 6 and len(mask) % 2 == 0 and all(map(is_number, mask)):
        return [mask]

    flat = _flat_points(mask)
    if flat is not None:
        return [flat]
    parts = [_flat_points(part) for part in mask]
    if all(part is None for part in parts):
        return None
    return [old if part is None else part for old, part in zip(mask, parts, strict=True)]


def _flat_points(points: Json) -> list[Json] | None:
    """The coordinates of three or more points [x, y] or {"x": x, "y": y}, one after the other."""
    if not isinstance(points, list) or len(points) < 3:
        return None
    pairs = [
        [p["x"], p["y"]] if isinstance(p, Mapping) and p.keys() >= {"x", "y"} else p for p in points
    ]
    is_points = all(
        isinstance(p, list | tuple) and len(p) == 2 and all(map(is_number, p)) for p in pairs
    )
    return [value for pair in pairs for value in pair] if is_points else None


def _fix_mask(new: dict[str, Json], size: tuple[int, int], report: ChangeReporter) -> None:
    given = new.get("segmentation")

    if isinstance(given, list) and given and all(isinstance(part, list) for part in given):
        kept = [part for part in given if not _flat(part)]
        if len(kept) < len(given):
            new["segmentation"] = kept
            count = f"{len(given) - len(kept)} of {counted(len(given), 'polygon')}"
            report("polygon without area", count, "removed from the mask")

    if (
        isinstance(given, Mapping)
        and given.get("size") is None
        and "counts" in given
        and fills(given, size)
    ):
        others = {key: value for key, value in given.items() if key != "size"}
        new["segmentation"] = given = {"size": list(size), **others}
        report("RLE size mismatch", "it had no size", "set to the image's size")

    if (
        isinstance(given, Mapping)
        and given.get("size") in (list(size), tuple(size))
        and fills(given, size)
        and coco_rle.area(given) == 0
    ):
        new["segmentation"] = []
        report("empty mask", "the RLE has no pixels", "mask removed")


def _flat(part: list[Json]) -> bool:
    """Whether a polygon has no area; False for one that is broken in another way."""
    if len(part) % 2 or not all(map(is_number, part)):
        return False
    points = np.array(part, dtype=np.float64).reshape(-1, 2)
    return len(points) < 3 or not (points.max(axis=0) > points.min(axis=0)).all()


def _fix_keypoints(
    new: dict[str, Json], category: Category, size: tuple[int, int], report: ChangeReporter
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
    labeled = keypoints[:, 2] > 0
    if not np.isin(keypoints[:, 2], (0, 1, 2)).all():
        return

    points = keypoints[:, :2]
    beyond = (points < -KEYPOINT_OFFSET) | (points > (size[1], size[0]))
    outside = labeled & beyond.any(axis=1)
    if outside.any():
        new["keypoints"] = [0 if outside[n // 3] else v for n, v in enumerate(given)]
        names = ", ".join(np.array(category.keypoints)[outside])
        report("keypoint outside the image", names, "marked as unlabeled")

    count = int((labeled & ~outside).sum())
    if new.get("num_keypoints", count) != count:
        old = f"it was {new['num_keypoints']!r}"
        report("num_keypoints is wrong", old, "set to the number of labeled keypoints")
        new["num_keypoints"] = count


def _fix_box(
    new: dict[str, Json],
    read: Annotation,
    around: BoxXYXY | None,
    size: tuple[int, int],
    report: ChangeReporter,
) -> bool:
    """Fixes `bbox`, helped by the box around the mask; False if the object must be dropped."""
    given = new.get("bbox")
    if given is None or given == []:
        if read.empty and _has_empty_mask_only(new):
            report("object without area", "it had only this mask", "annotation dropped")
            return False
        return True

    is_box = isinstance(given, list | tuple) and len(given) == 4 and all(map(is_number, given))
    if not is_box and around is None:
        return True
    x, y, width, height = given if is_box else (0, 0, -1, -1)
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, size[1]), min(y + height, size[0])
    beyond = max(left - x, top - y, x + width - right, y + height - bottom)
    unusable = not is_box or width <= 0 or height <= 0 or left >= right or top >= bottom

    if around is not None and is_box and _reads_as_corners(given, around):
        what = "converted to x, y, width, height, as the mask proves"
        _set_box(new, (x, y, width, height), "box is x0, y0, x1, y1", what, report)
    elif unusable and around is not None:
        kind = "box without area" if is_box else "box is not four numbers"
        _set_box(new, around, kind, "set to the box around the mask", report)
    elif unusable and min(width, height) == 0 and max(width, height) >= 0:
        has_keypoints = read.keypoints is not None
        what = "box removed" if has_keypoints else "annotation dropped"
        report("box without area", f"bbox was {list(given)}", what)
        if not has_keypoints:
            return False
        del new["bbox"]
    elif not unusable and beyond > 0:
        corners = (left, top, right, bottom)
        what = "clipped to the image"
        if around is not None and far_apart(corners, around):
            corners = around
            what = "set to the box around the mask"
        _set_box(new, corners, "box reaches beyond the image", what, report)
    return True


def _clipped(box: BoxXYXY | None, size: tuple[int, int]) -> BoxXYXY | None:
    """The part of a box inside the image; None if there is none."""
    if box is None:
        return None
    height, width = size
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[2], float(width)), min(box[3], float(height))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _has_empty_mask_only(new: JsonObject) -> bool:
    """Whether the mask is an empty list (by now) and no keypoint is given."""
    return new.get("segmentation") == [] and not any(new.get("keypoints") or ())


def _reads_as_corners(given: Json, around: BoxXYXY) -> bool:
    """Whether a bbox matches the box around its mask as x0, y0, x1, y1 only."""
    x, y, width, height = given
    as_corners = np.abs(np.subtract(given, around)).max()
    as_sides = np.abs(np.subtract((x, y, x + width, y + height), around)).max()
    return bool(as_corners <= _EXACT < as_sides)


def _set_box(
    new: dict[str, Json], corners: BoxXYXY, kind: str, what: str, report: ChangeReporter
) -> None:
    x0, y0, x1, y1 = corners
    report(kind, f"bbox was {new['bbox']!r:.80}", what)
    new["bbox"] = [x0, y0, x1 - x0, y1 - y0]


def _fix_area(
    new: dict[str, Json],
    raw: JsonObject,
    size: tuple[int, int],
    category: Category,
    report: ChangeReporter,
) -> None:
    """Recomputes `area` if it is wrong, or if it is a box's area and the box has changed."""
    if "area" not in raw:
        return
    kinds: list[str] = []
    order = range(len(category.keypoints))
    read = read_annotation(new, 0, category, order, size, lambda kind, *_: kinds.append(kind))

    box_changed = new.get("bbox") != raw.get("bbox") and bool(new.get("bbox"))
    if "area is wrong" not in kinds and not (read.mask_area is None and box_changed):
        return

    old = f"it was {raw['area']!r:.40}"
    if read.mask_area is not None:
        new["area"] = read.mask_area
        report("area is wrong", old, "set to the area of the mask")
    elif read.box is not None:
        x0, y0, x1, y1 = read.box
        new["area"] = (x1 - x0) * (y1 - y0)
        report("area is wrong", old, "set to the area of the box")
    elif not is_number(raw["area"]) or raw["area"] < 0:
        del new["area"]
        report("area is wrong", old, "removed; it is computed where it is needed")
