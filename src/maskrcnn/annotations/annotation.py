"""One COCO annotation, read: `read_annotation(json object) -> Annotation`, telling a listener everything that is wrong with it.

Reading is checking: `check` runs this same code over a whole file. The listener `report(kind, detail, cure, harmful)` hears of each fault; a harmful
one makes the annotation unusable, any other is mended as its cure says. COCO itself has many of the second kind.

Coordinates are continuous pixels of the original image; COCO's whole-number keypoints become the centers of their pixels (+ 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Category
from . import rle as coco_rle

Report = Callable[[str, str, str, bool], None]
Box = tuple[float, float, float, float]

KEYPOINT_OFFSET = 0.5
_FAR_PIXELS, _FAR_PART = (
    10.0,
    0.1,
)  # boxes farther than both from their mask are worth a note; COCO's own reach 10 px
_AREA_PIXELS, _AREA_PART = (
    25.0,
    0.3,
)  # areas farther than both from that of the mask; those of COCO's crowds are off by up to 0.22


@dataclass(frozen=True)
class Annotation:
    """One annotated object. It may have any part of a box, a mask (polygons or RLE) and keypoints."""

    id: int
    label: int
    """Index into the data set's categories."""
    box: Box | None
    """xyxy, inside the image."""
    polygons: tuple[np.ndarray, ...] | None
    """Polygons [n, 2]; the object is their union."""
    rle: dict[str, Any] | None
    """{"size": [height, width], "counts": list or text}."""
    keypoints: np.ndarray | None
    """[keypoints, 3]: x, y, visibility (0 unlabeled, 1 hidden, 2 visible), in the order of the own category; None = no keypoint is labeled."""
    ignore: bool
    """A crowd or a region to ignore."""
    area: float | None
    """As the file says."""
    mask_area: float | None = None
    """Of the mask, in pixels; None without one. Parts that overlap count twice."""

    @property
    def empty(self) -> bool:
        """Has neither box nor mask nor keypoints."""
        return self.box is None and self.mask_area is None and self.keypoints is None


def read_annotation(
    raw: Mapping[str, Any],
    label: int,
    category: Category,
    keypoint_order: Sequence[int],
    size: tuple[int, int],
    report: Report,
) -> Annotation:
    """Reads one annotation.

    Args:
        raw: the JSON object.
        label: of its category.
        category: as it is in the file.
        keypoints: for each keypoint wanted its place in the file's category, -1 where that has none.
        size: (height, width) of the image.
        report: hears of every fault.
    """
    faults: list[bool] = []

    def tell(kind: str, detail: str, suggestion: str, is_error: bool = True) -> None:
        faults.append(is_error)
        report(kind, detail, suggestion, is_error)

    shape = _mask(raw.get("segmentation"), size, tell)
    flat = shape.around is None and bool(raw.get("segmentation")) and not any(faults)
    box = _box(raw.get("bbox"), size, shape.around is not None, flat, tell)
    keypoints = _keypoints(raw, category, size, tell)
    if box is None and shape.around is None and keypoints is None and not any(faults):
        if flat:
            tell(
                "object without area",
                f"bbox is {raw.get('bbox')}, and the mask is as flat or empty",
                "the object is left out",
                False,
            )
        else:
            tell(
                "nothing annotated",
                "has no usable bbox, segmentation or keypoints",
                "annotate it, or drop it",
            )
    _compare(box, shape.around, keypoints, tell)
    if keypoints is not None:
        keypoints[:, :2] += KEYPOINT_OFFSET * (keypoints[:, 2:] > 0)
        keypoints = np.concatenate([keypoints, np.zeros((1, 3))])[
            list(keypoint_order)
        ]  # keypoint -1: the row of zeros
    ignore = bool(raw.get("iscrowd", 0) or raw.get("ignore", 0))
    area = _area(raw.get("area"), shape.area, tell)
    return Annotation(
        raw.get("id", -1),
        label,
        box,
        shape.polygons,
        shape.rle,
        keypoints,
        ignore,
        area,
        shape.area,
    )


def polygon_bounds(polygons: Sequence[np.ndarray]) -> Box:
    """The box (xyxy) around some polygons."""
    points = np.concatenate(list(polygons))
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def polygon_area(points: np.ndarray) -> float:
    """What a polygon [n, 2] encloses (the shoelace formula)."""
    x, y = (points - points[0]).T  # large coordinates would cost digits
    return (
        abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2
    )  # the edge back to the start adds nothing: it begins at 0, 0


def mask_bounds(annotation: Annotation) -> Box | None:
    """The box (xyxy) around an annotation's mask, None without one."""
    if annotation.polygons is not None:
        return polygon_bounds(annotation.polygons)
    if annotation.rle is None:
        return None
    x0, y0, x1, y1 = coco_rle.bbox(annotation.rle)
    return float(x0), float(y0), float(x1), float(y1)


@dataclass(frozen=True)
class _Shape:
    """A mask as it is annotated: polygons or RLE, the box (xyxy) around it, its area."""

    polygons: tuple[np.ndarray, ...] | None = None
    rle: dict[str, Any] | None = None
    around: Box | None = None
    area: float | None = None


def far_apart(box: Box, around: Box) -> float:
    """By how many pixels a side of a box is off that around its mask, 0 where that is nothing unusual."""
    off = max(
        abs(a - b) for a, b in zip(box, around, strict=True)
    )  # numpy would take ten times as long
    return off if off > max(_FAR_PIXELS, _FAR_PART * max(box[2] - box[0], box[3] - box[1])) else 0.0


def is_number(value: Any) -> bool:
    """Whether it is a finite number of JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _box(given: Any, size: tuple[int, int], has_mask: bool, flat: bool, tell: Any) -> Box | None:
    """`flat`: there was a mask, but without area. A box without area beside it is no mistake but an object of no size (COCO has two)."""
    if given is None or given == []:
        return None
    if not isinstance(given, list | tuple) or len(given) != 4 or not all(map(is_number, given)):
        return tell(
            "box is not four numbers",
            f"bbox is {given!r:.80}",
            "write bbox as [x, y, width, height] in pixels",
        )
    x, y, width, height = given
    if flat and width >= 0 and height >= 0 and width * height == 0:
        return None
    if width < 0 or height < 0 or (width * height == 0 and not has_mask):
        return tell(
            "box without area",
            f"bbox width is {width:g} and height {height:g}, must be > 0",
            "mend bbox, or drop the annotation",
        )
    if width * height == 0:
        return tell(
            "box without area, but a mask",
            f"bbox is {list(given)}",
            "the box of the mask is taken instead",
            False,
        )
    x1, y1 = min(x + width, size[1]), min(y + height, size[0])
    x0, y0 = max(x, 0), max(y, 0)
    if x0 >= x1 or y0 >= y1:
        return tell(
            "box outside the image",
            f"bbox is {list(given)}, the image {size[1]} x {size[0]}",
            "mend bbox (is it x, y, width, height?)",
        )
    if max(x0 - x, y0 - y, x + width - x1, y + height - y1) > 1:
        tell(
            "box reaches beyond the image",
            f"bbox is {list(given)}, the image {size[1]} x {size[0]}",
            "the box is clipped",
            False,
        )
    return float(x0), float(y0), float(x1), float(y1)


def _mask(given: Any, size: tuple[int, int], tell: Any) -> _Shape:
    if isinstance(given, Mapping):
        return _rle(given, size, tell)
    if given is None or (isinstance(given, list) and not given):
        return _Shape()
    if not isinstance(given, list) or not all(isinstance(part, list) for part in given):
        tell(
            "segmentation of no known form",
            f"segmentation is {given!r:.80}",
            "write a list of polygons [[x, y, x, y, ..], ..] or an RLE object",
        )
        return _Shape()
    parts = [part for part in (_polygon(part, tell) for part in given) if part is not None]
    if not parts:
        return _Shape()
    boxes = list(zip(*(box for _, box in parts), strict=True))
    around = (min(boxes[0]), min(boxes[1]), max(boxes[2]), max(boxes[3]))
    if not _inside(around, size, tell):
        return _Shape()
    return _Shape(
        tuple(points for points, _ in parts),
        None,
        around,
        sum(polygon_area(points) for points, _ in parts),
    )


def _inside(around: Box, size: tuple[int, int], tell: Any) -> bool:
    """Whether any of the mask with this box around it can lie in the image."""
    (x0, y0, x1, y1), (height, width) = around, size
    spans = (
        f"it spans {x0:g}..{x1:g} across and {y0:g}..{y1:g} down, the image is {width} x {height}"
    )
    if min(x1, y1) <= 0 or x0 >= width or y0 >= height:
        return bool(
            tell(
                "mask outside the image",
                spans,
                "draw it again; was it drawn in another image, or in one of another size?",
            )
        )
    if max(-x0, -y0, x1 - width, y1 - height) > 1:
        tell("mask reaches beyond the image", spans, "it is cut off at the border", False)
    return True


def _polygon(part: list[Any], tell: Any) -> tuple[np.ndarray, Box] | None:
    """Its points and the box around them."""
    try:
        points = np.array(part, dtype=np.float64)
        if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError
    except (ValueError, TypeError):
        return tell(
            "broken polygon",
            f"a polygon of {len(part)} values: {part!r:.60}",
            "write each polygon as [x, y, x, y, ..] with finite numbers",
        )
    points = points.reshape(-1, 2)
    if len(points) >= 3:
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        if x1 > x0 and y1 > y0:
            return points, (x0, y0, x1, y1)
    return tell(
        "polygon without area",
        f"{len(points)} points: {part!r:.60}",
        "this part of the mask is left out",
        False,
    )


def _rle(given: Mapping[str, Any], size: tuple[int, int], tell: Any) -> _Shape:
    own = given.get("size")
    if "counts" not in given or not isinstance(own, list | tuple) or list(own) != list(size):
        detail = f"size is {own}, the image has height, width = {list(size)}"
        tell(
            "RLE of another size",
            detail,
            'write {"size": [height, width], "counts": ..} for this image',
        )
        return _Shape()
    try:
        runs = coco_rle.counts(given)
    except (ValueError, TypeError) as error:
        tell(
            "broken RLE",
            str(error),
            "encode the mask again, for example with pycocotools or maskrcnn.annotations.rle.encode",
        )
        return _Shape()
    area = float(runs[1::2].sum())
    if area == 0:
        tell(
            "empty mask",
            "the RLE holds no pixel",
            "the object is taken as one without a mask",
            False,
        )
        return _Shape()
    x0, y0, x1, y1 = coco_rle.bounds(runs, size[0])
    return _Shape(
        None,
        {"size": list(size), "counts": given["counts"]},
        (float(x0), float(y0), float(x1), float(y1)),
        area,
    )


def _area(given: Any, mask: float | None, tell: Any) -> float | None:
    """The area as the file has it; a note where it cannot be that of the mask."""
    area = float(given) if is_number(given) else None
    wrong = area is None if given is not None else False
    if area is not None:
        wrong = area < 0 or (
            mask is not None and abs(area - mask) > max(_AREA_PIXELS, _AREA_PART * mask)
        )
    if wrong:
        true = "" if mask is None else f", that of the mask {mask:.0f} px"
        tell(
            "area is wrong",
            f"area is {given!r:.40}{true}",
            "it is used as it is, to sort objects by size in the evaluation",
            False,
        )
    return area


def _keypoints(
    raw: Mapping[str, Any], category: Category, size: tuple[int, int], tell: Any
) -> np.ndarray | None:
    given = raw.get("keypoints")
    if not given or (isinstance(given, list | tuple) and not any(given)):
        return None
    if not isinstance(given, list | tuple):
        return tell(
            "keypoints of another length",
            f"keypoints is {given!r:.80}",
            "write x, y, visibility of each keypoint, one after the other",
        )
    count = len(category.keypoints)
    if count == 0:
        where = f'category "{category.name}" names no keypoints'
        return tell(
            "keypoints without names",
            where,
            'list the names of the keypoints as "keypoints" of the category',
        )
    if len(given) != 3 * count or not all(is_number(v) for v in given):
        detail = f'{len(given)} values for the {count} keypoints of category "{category.name}"'
        return tell(
            "keypoints of another length",
            detail,
            f"write {3 * count} finite numbers: x, y, visibility of each keypoint",
        )
    points = np.array(given, dtype=np.float64).reshape(-1, 3)
    visibility = points[:, 2]
    if not ((visibility == 0) | (visibility == 1) | (visibility == 2)).all():
        return tell(
            "unknown visibility",
            f"values {sorted(set(visibility) - {0.0, 1.0, 2.0})}",
            "use 0 unlabeled, 1 hidden, 2 visible",
        )
    if "num_keypoints" in raw and raw["num_keypoints"] != (visibility > 0).sum():
        detail = f"num_keypoints is {raw['num_keypoints']}, {(visibility > 0).sum()} are labeled"
        tell("num_keypoints is wrong", detail, "the labeled keypoints count", False)
    outside = (visibility > 0) & (
        (points[:, :2] < -KEYPOINT_OFFSET) | (points[:, :2] > (size[1], size[0]))
    ).any(axis=1)
    if outside.any():
        names = ", ".join(np.array(category.keypoints)[outside])
        tell("keypoint outside the image", names, "it is taken as unlabeled", False)
        points[outside] = 0
    return points if (points[:, 2] > 0).any() else None


def _compare(box: Box | None, around: Box | None, keypoints: np.ndarray | None, tell: Any) -> None:
    """Notes where the parts of one annotation disagree; each is used as it is."""
    if box is None:
        return
    if around is not None and (off := far_apart(box, around)):
        tell(
            "box far from its mask",
            f"a side is off by {off:.0f} px",
            "the box is used as it is; look at the annotation",
            False,
        )
    if keypoints is not None:
        x, y = keypoints[keypoints[:, 2] > 0, :2].T
        away = np.maximum.reduce([box[0] - x, x + 1 - box[2], box[1] - y, y + 1 - box[3]])
        if away.max() > 1:
            tell(
                "keypoint outside its box",
                f"by up to {away.max():.0f} px",
                "it is used as it is",
                False,
            )
