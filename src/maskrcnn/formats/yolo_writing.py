"""Writes YOLO: data.yaml, and a text file of labels beside each copied image.

A line holds one polygon: several parts, and holes, are joined by cuts of zero width, which change
no pixel. Numbers have ten digits, so coordinates survive a round trip to within a millionth of a
pixel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.categories import parse_categories
from ..annotations.coco_types import CocoAnnotation, CocoCategory, CocoImage
from .reading import Annotated, BoxXYXY
from .writing import (
    ConversionTarget,
    Unrepresentable,
    around,
    box_of,
    categories_by_id,
    ignored,
    inside,
    keypoints_of,
    label_of,
    mask_box,
    one_polygon,
    size_of,
)
from .yolo_lines import may_be_tracked_box
from .yolo_settings import SPLITS, load_settings


def write_yolo(annotated: Annotated, target: ConversionTarget, lost: Unrepresentable) -> None:
    """Writes data.yaml, images/SPLIT and labels/SPLIT.

    Raises:
        ValueError: a second split has the same key, or poses differ in their number of keypoints.
    """
    categories = categories_by_id(annotated.content)
    index = {category_id: k for k, category_id in enumerate(categories)}
    is_pose = target.format == "yolo-pose"
    keypoints = _common_keypoints(categories) if is_pose else 0
    boxes_only = not any(raw.get("segmentation") for raw in annotated.content["annotations"])
    split = _split_name(target)

    for image, raws in target.each():
        lines: list[str] = []
        for raw in raws:
            where = label_of(raw, image)
            if ignored(raw):
                lost.add("crowds and regions to ignore, left out", where)
                continue
            if is_pose:
                category = categories[raw["category_id"]]
                values = _pose(raw, image, category, keypoints, lost)
            else:
                values = _segment(raw, image, boxes_only, target.tolerance, lost)
            if values is not None:
                words = [str(index[raw["category_id"]]), *(f"{v:.10g}" for v in values)]
                lines.append(" ".join(words))

        folder = target.folder / "images" / split
        name = target.bring(image, folder).relative_to(folder).with_suffix(".txt")
        labels = target.folder / "labels" / split / name
        target.write(labels, "".join(line + "\n" for line in lines))
    _write_yaml(target, split, categories, keypoints, lost)


def _segment(
    raw: CocoAnnotation,
    image: CocoImage,
    boxes_only: bool,
    tolerance: float,
    lost: Unrepresentable,
) -> list[float] | None:
    """The values of a line for segmentation; None, with a loss added, if there are none.

    An object without a mask is a box if all objects are (`boxes_only`), else a rectangle.
    """
    height, width = size_of(image)
    where = label_of(raw, image)
    if any(v > 0 for v in (raw.get("keypoints") or [])[2::3]):
        lost.add("keypoints", where)
    polygon = one_polygon(raw, (height, width), tolerance)
    if polygon is not None and (polygon := inside(polygon, (height, width))) is not None:
        values = (polygon / (width, height)).ravel()
        if may_be_tracked_box(values):
            values = np.concatenate([values, values[-2:]])  # the reader asks for this
        return values.tolist()

    box = box_of(raw)
    if box is None:
        lost.add("objects with neither mask nor box, left out", where)
        return None
    if boxes_only:
        return _box_values(box, (height, width))
    lost.add("boxes without a mask, written as rectangles", where)
    x0, y0, x1, y1 = _box_inside(box, (height, width))
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return (corners / (width, height)).ravel().tolist()


def _pose(
    raw: CocoAnnotation,
    image: CocoImage,
    category: CocoCategory,
    count: int,
    lost: Unrepresentable,
) -> list[float] | None:
    """The values of a line for poses with `count` keypoints; None if there is no box."""
    height, width = size_of(image)
    where = label_of(raw, image)
    if raw.get("segmentation"):
        lost.add("masks", where)
    box = box_of(raw) or mask_box(raw, (height, width))
    if box is None:
        lost.add("objects without a box, written with the box around their keypoints", where)
        box = around(keypoints_of(raw, category))
    if box is None:
        return None

    # Keypoints outside of the image are unlabeled, as they are when COCO is read.
    values = list(raw.get("keypoints") or ()) or [0] * 3 * count
    points = np.array(values, dtype=float).reshape(-1, 3)
    xy = points[:, :2]
    in_image = (xy >= -KEYPOINT_OFFSET) & (xy <= (width, height))
    labeled = in_image.all(axis=1, keepdims=True) & (points[:, 2:] > 0)
    keypoints = points * labeled / (width, height, 1)
    return [*_box_values(box, (height, width)), *keypoints.ravel().tolist()]


def _box_values(box: BoxXYXY, size: tuple[int, int]) -> list[float]:
    """Center and size of a box, as fractions of the image."""
    height, width = size
    x0, y0, x1, y1 = _box_inside(box, size)
    return [
        (x0 + x1) / 2 / width,
        (y0 + y1) / 2 / height,
        (x1 - x0) / width,
        (y1 - y0) / height,
    ]


def _box_inside(box: BoxXYXY, size: tuple[int, int]) -> BoxXYXY:
    """A box clipped to the image."""
    x0, y0, x1, y1 = np.clip(box, 0, (size[1], size[0]) * 2).tolist()
    return x0, y0, x1, y1


def _split_name(target: ConversionTarget) -> str:
    """The key of data.yaml for a split.

    That is val for "valid" or "instances_val2017", and train for a name that contains no key.
    """
    name = next((split for split in SPLITS if split in target.split.lower()), "train")
    if (target.folder / "images" / name).exists():
        raise ValueError(
            f'{target.format}: "{target.split}" is a second split for the key "{name}" '
            "of data.yaml; convert the splits separately"
        )
    return name


def _common_keypoints(categories: Mapping[int, CocoCategory]) -> int:
    """The number of keypoints that all categories with keypoints have."""
    counts = {c["name"]: len(c.get("keypoints") or ()) for c in categories.values()}
    distinct = set(counts.values()) - {0}
    if len(distinct) != 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(
            "yolo-pose needs the same number of keypoints for all categories, "
            f"got {listed}; choose coco, cvat or labelme"
        )
    return distinct.pop()


def _write_yaml(
    target: ConversionTarget,
    split: str,
    categories: Mapping[int, CocoCategory],
    keypoints: int,
    lost: Unrepresentable,
) -> None:
    """Writes data.yaml, or adds a split to it."""
    import yaml

    path = target.folder / "data.yaml"
    settings: dict[str, object] = dict(load_settings(path)) if path.exists() else {"path": "."}
    settings[split] = f"images/{split}"
    settings["names"] = {n: c["name"] for n, c in enumerate(categories.values())}

    if keypoints:
        parsed = parse_categories(list(categories.values()))
        first = next(c for c in parsed if c.keypoints)
        settings["kpt_shape"] = [keypoints, 3]
        settings["flip_idx"] = list(first.mirrored)
        names = [list(c.keypoints or first.keypoints) for c in parsed]
        settings["kpt_names"] = dict(enumerate(names))
        for category in parsed:
            if category.keypoints and category.mirrored != first.mirrored:
                kind = f'left and right of keypoints (flip) other than those of "{first.name}"'
                lost.add_category(kind, category.name)
    for category in categories.values():
        if category.get("skeleton"):
            lost.add_category("limbs of skeletons", category["name"])
    target.rewrite(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
