"""Reads one COCO annotation and reports everything wrong with it.

In:  one annotation as a JSON object, its category and the size of its image.
Out: an `Annotation`; each problem goes to a `ProblemReporter`.

Reading and checking are one code path: `find_problems` runs it over a whole file. An error makes
the annotation unusable. A warning does not: the annotation is used as the warning's suggestion
says. COCO itself has many warnings.

Coordinates are continuous pixels of the original image. COCO stores keypoints as whole pixel
indices; they are moved to the centers of those pixels (+ 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Category
from ..runtime.counted import counted
from . import rle as coco_rle
from .coco_types import RLE, Json, JsonObject
from .mask_parts import has_rle_parts, unite_parts
from .shown_values import shown

ProblemReporter = Callable[[str, str, str, bool], None]
"""Called as `report_problem(kind, detail, suggestion, is_error)` for each problem."""

BoxXYXY = tuple[float, float, float, float]

KEYPOINT_OFFSET = 0.5

MOST = 1e15
"""Numbers of annotations are at most this large: their products are still exact enough."""

# A box is reported when it is farther than both from its mask. COCO's own boxes are off by up to 10
# px.
_FAR_PIXELS = 10.0
_FAR_SHARE = 0.1

# An area is reported when it differs by more than both from that of the mask. COCO's crowds are off
# by up to 0.22.
_AREA_PIXELS = 25.0
_AREA_SHARE = 0.3


@dataclass(frozen=True)
class Annotation:
    """One annotated object. Box, mask (polygons or RLE) and keypoints are each optional."""

    id: int
    label: int
    """Index into the data set's categories."""
    box: BoxXYXY | None
    """xyxy, inside the image."""
    polygons: tuple[np.ndarray, ...] | None
    """Polygons [n, 2]; the object is their union."""
    rle: RLE | None
    """Compressed or uncompressed."""
    keypoints: np.ndarray | None
    """[keypoints, 3]: x, y, visibility (0 unlabeled, 1 hidden, 2 visible).

    In the order of the requested category. None if no keypoint is labeled.
    """
    ignore: bool
    """Whether it is a crowd or another region to ignore."""
    area: float | None
    """As stored in the file."""
    mask_area: float | None = None
    """Area of the mask in pixels, None without a mask. Overlapping parts count twice."""
    points: np.ndarray | None = None
    """[n, 3]: x, y, and 1 for a point on the object, 0 for one beside it. None without such points.
    A cheap substitute for a mask (Cheng, Parkhi & Kirillov 2022)."""

    @property
    def empty(self) -> bool:
        """Whether it has neither box nor mask nor keypoints."""
        return self.box is None and self.mask_area is None and self.keypoints is None


@dataclass
class _ProblemLog:
    """Forwards problems to a reporter and remembers whether one was an error."""

    report_problem: ProblemReporter
    has_error: bool = False

    def error(self, kind: str, detail: str, suggestion: str) -> None:
        self.has_error = True
        self.report_problem(kind, detail, suggestion, True)

    def warning(self, kind: str, detail: str, suggestion: str) -> None:
        self.report_problem(kind, detail, suggestion, False)


@dataclass(frozen=True)
class _AnnotatedMask:
    """A mask as annotated: polygons or RLE, its bounds and its area. All None without a mask."""

    polygons: tuple[np.ndarray, ...] | None = None
    rle: RLE | None = None
    bounds: BoxXYXY | None = None
    area: float | None = None


def read_annotation(
    raw: JsonObject,
    label: int,
    category: Category,
    keypoint_order: Sequence[int],
    size: tuple[int, int],
    report_problem: ProblemReporter,
) -> Annotation:
    """Reads one annotation.

    Args:
        raw: the JSON object.
        label: label of its category.
        category: the category as defined in the file.
        keypoint_order: for each requested keypoint its index in `category`, -1 where the file has
            none.
        size: (height, width) of the image.
        report_problem: receives every problem.
    """
    problems = _ProblemLog(report_problem)

    mask = _read_mask(raw.get("segmentation"), size, problems)
    has_mask = mask.bounds is not None
    mask_is_flat = not has_mask and bool(raw.get("segmentation")) and not problems.has_error

    box = _read_box(raw.get("bbox"), size, has_mask, mask_is_flat, problems)
    keypoints = _read_keypoints(raw, category, size, problems)
    points = _read_points(raw, size, problems)

    if box is None and not has_mask and keypoints is None and not problems.has_error:
        if mask_is_flat:
            problems.warning(
                "object without area",
                f"bbox is {shown(raw.get('bbox'))}, and the mask is empty or has no area",
                "the object is left out",
            )
        else:
            problems.error(
                "nothing annotated",
                "has no usable bbox, segmentation or keypoints",
                "annotate it, or drop it",
            )
    if points is not None and box is None and not has_mask:
        suggestion = "write the object's bbox; its points are not used"
        problems.warning("labeled points without a box", counted(len(points), "point"), suggestion)
        points = None
    _compare_parts(box, mask.bounds, keypoints, problems)

    if keypoints is not None:
        keypoints[:, :2] += KEYPOINT_OFFSET * (keypoints[:, 2:] > 0)
        # index -1 selects the row of zeros
        keypoints = np.concatenate([keypoints, np.zeros((1, 3))])[list(keypoint_order)]

    return Annotation(
        id=raw.get("id", -1),
        label=label,
        box=box,
        polygons=mask.polygons,
        rle=mask.rle,
        keypoints=keypoints,
        ignore=bool(raw.get("iscrowd", 0) or raw.get("ignore", 0)),
        area=_read_area(raw.get("area"), mask.area, problems),
        mask_area=mask.area,
        points=points,
    )


def polygon_bounds(polygons: Sequence[np.ndarray]) -> BoxXYXY:
    """Returns the bounding box (xyxy) of some polygons."""
    points = np.concatenate(list(polygons))
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def polygon_area(points: np.ndarray) -> float:
    """Returns the area enclosed by a polygon [n, 2] (shoelace formula)."""
    # relative to the first point: large coordinates would lose precision, and the closing edge adds
    # nothing
    x, y = (points - points[0]).T
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2


def mask_bounds(annotation: Annotation) -> BoxXYXY | None:
    """Returns the bounding box (xyxy) of an annotation's mask, None without a mask."""
    if annotation.polygons is not None:
        return polygon_bounds(annotation.polygons)
    if annotation.rle is None:
        return None
    x0, y0, x1, y1 = coco_rle.bbox(annotation.rle)
    return float(x0), float(y0), float(x1), float(y1)


def is_unmasked(annotation: Annotation) -> bool:
    """Returns whether an object has a box and no mask; it may have labeled points."""
    has_mask = annotation.polygons is not None or annotation.rle is not None
    return annotation.box is not None and not has_mask


def far_apart(box: BoxXYXY, around: BoxXYXY) -> float:
    """Returns the largest distance in pixels between the sides of a box and its mask.

    0 if the distance is within tolerance.

    Args:
        box: the annotated box.
        around: the bounding box of the mask.
    """
    distance = max(abs(a - b) for a, b in zip(box, around, strict=True))  # 10x faster than numpy
    tolerance = max(_FAR_PIXELS, _FAR_SHARE * max(box[2] - box[0], box[3] - box[1]))
    return distance if distance > tolerance else 0.0


def is_number(value: Json) -> bool:
    """Returns whether a JSON value is a finite number of at most `MOST`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def _read_box(
    bbox: Json, size: tuple[int, int], has_mask: bool, mask_is_flat: bool, problems: _ProblemLog
) -> BoxXYXY | None:
    """Returns the box clipped to the image, None if it is missing or unusable.

    `mask_is_flat`: there is a mask, but without area. A box without area is then not an error: the
    object has no size (COCO has two of these).
    """
    if bbox is None or bbox == []:
        return None
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(map(is_number, bbox)):
        problems.error(
            "box is not four numbers",
            f"bbox is {shown(bbox)}",
            "write bbox as [x, y, width, height] in pixels",
        )
        return None
    x, y, width, height = bbox

    if mask_is_flat and width >= 0 and height >= 0 and width * height == 0:
        return None
    if width < 0 or height < 0 or (width * height == 0 and not has_mask):
        problems.error(
            "box without area",
            f"bbox width is {width:g} and height {height:g}, both must be > 0",
            "fix bbox, or drop the annotation",
        )
        return None
    if width * height == 0:
        problems.warning(
            "box without area, but a mask",
            f"bbox is {list(bbox)}",
            "the bounding box of the mask is used instead",
        )
        return None

    x0 = max(x, 0)
    y0 = max(y, 0)
    x1 = min(x + width, size[1])
    y1 = min(y + height, size[0])
    detail = f"bbox is {list(bbox)}, the image is {size[1]} x {size[0]}"
    if x0 >= x1 or y0 >= y1:
        problems.error("box outside the image", detail, "fix bbox (is it x, y, width, height?)")
        return None
    if max(x0 - x, y0 - y, x + width - x1, y + height - y1) > 1:
        problems.warning("box reaches beyond the image", detail, "the box is clipped")

    return float(x0), float(y0), float(x1), float(y1)


def _read_mask(segmentation: Json, size: tuple[int, int], problems: _ProblemLog) -> _AnnotatedMask:
    if isinstance(segmentation, Mapping):
        return _read_rle(segmentation, size, problems)
    if segmentation is None or (isinstance(segmentation, list) and not segmentation):
        return _AnnotatedMask()
    if has_rle_parts(segmentation):
        return _read_parts(segmentation, size, problems)
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        problems.error(
            "segmentation format not recognized",
            f"segmentation is {shown(segmentation)}",
            "write a list of polygons [[x, y, x, y, ...], ...] or an RLE object",
        )
        return _AnnotatedMask()

    if len(segmentation) >= 3 and all(len(p) == 2 for p in segmentation):
        problems.error(
            "segmentation format not recognized",
            f"the mask is {counted(len(segmentation), 'point')}, not a list of polygons",
            "write a list of polygons [[x, y, x, y, ...], ...] or an RLE object",
        )
        return _AnnotatedMask()

    parts = [_read_polygon(values, problems) for values in segmentation]
    usable = [part for part in parts if part is not None]
    if not usable:
        return _AnnotatedMask()

    boxes = list(zip(*(box for _, box in usable), strict=True))
    bounds = (min(boxes[0]), min(boxes[1]), max(boxes[2]), max(boxes[3]))
    if not _reaches_image(bounds, size, problems):
        return _AnnotatedMask()

    polygons = tuple(points for points, _ in usable)
    area = sum(polygon_area(points) for points in polygons)
    return _AnnotatedMask(polygons=polygons, bounds=bounds, area=area)


def _read_parts(parts: Json, size: tuple[int, int], problems: _ProblemLog) -> _AnnotatedMask:
    """Reads a list with RLEs in it, whose parts are united."""
    try:
        united = unite_parts(parts)
    except ValueError as error:
        suggestion = "write all parts as polygons, or one RLE object"
        problems.error("broken part of a mask", str(error), suggestion)
        return _AnnotatedMask()
    return _read_rle(united, size, problems)


def _reaches_image(bounds: BoxXYXY, size: tuple[int, int], problems: _ProblemLog) -> bool:
    """Returns whether a mask with these bounds can have a part in the image."""
    x0, y0, x1, y1 = bounds
    height, width = size
    spans = f"it spans x from {x0:g} to {x1:g} and y from {y0:g} to {y1:g}"
    detail = f"{spans}, the image is {width} x {height}"
    if min(x1, y1) <= 0 or x0 >= width or y0 >= height:
        problems.error(
            "mask outside the image",
            detail,
            "redraw it; was it drawn on another image, or at another size?",
        )
        return False

    if max(-x0, -y0, x1 - width, y1 - height) > 1:
        suggestion = "the mask is clipped to the image"
        problems.warning("mask reaches beyond the image", detail, suggestion)
    return True


def _read_polygon(values: list[Json], problems: _ProblemLog) -> tuple[np.ndarray, BoxXYXY] | None:
    """Returns the points [n, 2] and their bounding box."""
    try:
        points = np.array(values, dtype=np.float64)
        if points.ndim != 1 or len(points) % 2 or not (np.abs(points) <= MOST).all():
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        problems.error(
            "broken polygon",
            f"a polygon of {counted(len(values), 'value')}: {shown(values, 60)}",
            "write each polygon as [x, y, x, y, ...] with finite numbers",
        )
        return None

    points = points.reshape(-1, 2)
    if len(points) >= 3:
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        if x1 > x0 and y1 > y0:
            return points, (x0, y0, x1, y1)

    problems.warning(
        "polygon without area",
        f"{counted(len(points), 'point')}: {shown(values, 60)}",
        "this part of the mask is left out",
    )
    return None


def _read_rle(encoded: JsonObject, size: tuple[int, int], problems: _ProblemLog) -> _AnnotatedMask:
    encoded_size = encoded.get("size")
    if (
        "counts" not in encoded
        or not isinstance(encoded_size, list | tuple)
        or list(encoded_size) != list(size)
    ):
        problems.error(
            "RLE size mismatch",
            f"size is {shown(encoded_size)}, the image has height, width = {list(size)}",
            'write {"size": [height, width], "counts": ...} for this image',
        )
        return _AnnotatedMask()

    try:
        runs = coco_rle.counts(encoded)
    except (ValueError, TypeError, OverflowError) as error:
        problems.error(
            "broken RLE",
            str(error),
            "encode the mask again, for example with maskrcnn.annotations.rle.encode",
        )
        return _AnnotatedMask()

    area = float(runs[1::2].sum())
    if area == 0:
        problems.warning(
            "empty mask", "the RLE has no pixels", "the object is treated as having no mask"
        )
        return _AnnotatedMask()

    x0, y0, x1, y1 = coco_rle.bounds(runs, size[0])
    return _AnnotatedMask(
        rle={"size": list(size), "counts": encoded["counts"]},
        bounds=(float(x0), float(y0), float(x1), float(y1)),
        area=area,
    )


def _read_area(value: Json, mask_area: float | None, problems: _ProblemLog) -> float | None:
    """Returns the area as stored in the file; None where it is missing or is no area."""
    of_mask = "" if mask_area is None else f", the mask has {mask_area:.0f} px"
    detail = f"area is {shown(value, 40)}{of_mask}"
    if value is not None and not (is_number(value) and value >= 0):
        suggestion = "it is computed anew from the mask, or without one from the box"
        problems.warning("area is wrong", detail, suggestion)
    if not (is_number(value) and value >= 0):
        return None

    area = float(value)
    tolerance = max(_AREA_PIXELS, _AREA_SHARE * (mask_area or 0.0))
    if mask_area is not None and abs(area - mask_area) > tolerance:
        suggestion = "the value is kept; the evaluation groups objects by size with it"
        problems.warning("area is wrong", detail, suggestion)
    return area


def _read_keypoints(
    raw: JsonObject, category: Category, size: tuple[int, int], problems: _ProblemLog
) -> np.ndarray | None:
    """Returns [keypoints, 3] in the order of the file, None if no keypoint is labeled."""
    values = raw.get("keypoints")
    if not values or (isinstance(values, list | tuple) and not any(values)):
        return None

    if not isinstance(values, list | tuple):
        problems.error(
            "wrong number of keypoints",
            f"keypoints is {shown(values)}",
            "write x, y, visibility of each keypoint, one after the other",
        )
        return None
    count = len(category.keypoints)
    if count == 0:
        problems.error(
            "keypoints without names",
            f'category "{category.name}" names no keypoints',
            'list the names of the keypoints as "keypoints" of the category',
        )
        return None
    if len(values) != 3 * count:
        problems.error(
            "wrong number of keypoints",
            f"{counted(len(values), 'value')} for the {counted(count, 'keypoint')} "
            f'of category "{category.name}"',
            f"write {3 * count} numbers: x, y, visibility of each keypoint",
        )
        return None
    if broken := [v for v in values if not is_number(v)]:
        problems.error(
            "keypoint is not a number",
            f"{len(broken)} of {counted(len(values), 'value')}, such as {shown(broken[0], 40)}",
            "write finite numbers, or 0, 0, 0 for a keypoint that is not labeled",
        )
        return None

    points = np.array(values, dtype=np.float64).reshape(-1, 3)
    visibility = points[:, 2]
    if not ((visibility == 0) | (visibility == 1) | (visibility == 2)).all():
        unknown = sorted(set(visibility.tolist()) - {0.0, 1.0, 2.0})
        problems.error(
            "unknown visibility",
            f"values {', '.join(f'{v:g}' for v in unknown[:10])}",
            "use 0 unlabeled, 1 hidden, 2 visible",
        )
        return None

    num_labeled = int((visibility > 0).sum())
    given = raw.get("num_keypoints", num_labeled)
    if given != num_labeled:
        problems.warning(
            "num_keypoints is wrong",
            f"num_keypoints is {shown(given, 40)}, {num_labeled} are labeled",
            "num_keypoints is ignored",
        )

    outside = (points[:, :2] < -KEYPOINT_OFFSET) | (points[:, :2] > (size[1], size[0]))
    labeled_outside = (visibility > 0) & outside.any(axis=1)
    if labeled_outside.any():
        names = ", ".join(np.array(category.keypoints)[labeled_outside])
        problems.warning("keypoint outside the image", names, "it is treated as unlabeled")
        points[labeled_outside] = 0

    return points if (points[:, 2] > 0).any() else None


def _read_points(
    raw: JsonObject, size: tuple[int, int], problems: _ProblemLog
) -> np.ndarray | None:
    """Returns labeled points [n, 3] in continuous pixels, None if there are none."""
    places = raw.get("point_coords")
    labels = raw.get("point_labels")
    if not places and not labels:
        return None

    def broken(detail: str) -> None:
        suggestion = (
            "write point_coords as [[x, y], ...] and point_labels as one 1 (on the object) or 0 "
            "for each point"
        )
        problems.error("labeled points are broken", detail, suggestion)

    if not isinstance(places, list | tuple) or not isinstance(labels, list | tuple):
        broken(f"point_coords is {shown(places, 40)}, point_labels {shown(labels, 40)}")
        return None
    if len(places) != len(labels):
        broken(f"{len(places)} point_coords and {len(labels)} point_labels")
        return None
    for point, label in zip(places, labels, strict=True):
        is_pair = isinstance(point, list | tuple) and len(point) == 2
        if not is_pair or not all(map(is_number, (*point, label))) or label not in (0, 1):
            broken(f"point {shown(point, 40)} with the label {shown(label, 40)}")
            return None

    points = np.array([(*point, label) for point, label in zip(places, labels, strict=True)])
    points = points.astype(np.float64).reshape(-1, 3)
    points[:, :2] += KEYPOINT_OFFSET
    outside = ((points[:, :2] < 0) | (points[:, :2] > (size[1], size[0]))).any(axis=1)
    if outside.any():
        number = f"{outside.sum():,} of {counted(len(points), 'point')}"
        detail = f"{number}; the image is {size[1]} x {size[0]}"
        problems.warning("labeled point outside the image", detail, "it is not used")
        points = points[~outside]
    return points if len(points) else None


def _compare_parts(
    box: BoxXYXY | None,
    around: BoxXYXY | None,
    keypoints: np.ndarray | None,
    problems: _ProblemLog,
) -> None:
    """Warns where the parts of one annotation disagree; each is used as it is."""
    if box is None:
        return

    if around is not None and (distance := far_apart(box, around)):
        problems.warning(
            "box far from its mask",
            f"a side is off by {distance:.0f} px",
            "the box is used as it is; look at the annotation",
        )
    if keypoints is not None:
        x, y = keypoints[keypoints[:, 2] > 0, :2].T
        away = np.maximum.reduce([box[0] - x, x + 1 - box[2], box[1] - y, y + 1 - box[3]])
        if away.max() > 1:
            problems.warning(
                "keypoint outside its box",
                f"by up to {away.max():.0f} px",
                "the keypoint is used as it is",
            )
