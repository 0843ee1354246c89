"""Problems that only the whole data set shows.

In: a data set and the model that would be trained on it.
Out: `ObjectTable`, the usable annotations as arrays, and a list of `Problem`s: rare
categories, objects beyond the reach of the anchors, boxes in another format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from ..annotations.annotation import mask_bounds
from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import CocoAnnotation, Json
from ..annotations.problems import Problem
from ..config import ModelConfig
from ..preprocess import input_size
from ..runtime.counted import counted

FEW = 10
"""A category with fewer objects is reported as rare."""
SMALLEST = 0.5
LARGEST = 2.0
"""Objects smaller than this multiple of the smallest anchor's side, or larger than this multiple of
the largest one's, overlap no anchor enough to be learned well."""
_ENOUGH = 10  # boxes from which their format can be recognized
# Share of the boxes that reach beyond their images when x0, y0, x1, y1 is read as
# x, y, width, height: most of those in the right or lower half do.
_BEYOND = 0.25


@dataclass(frozen=True)
class ObjectTable:
    """The usable annotations of a data set, N objects in M images."""

    annotation_indices: Int64[np.ndarray, "N"]
    """Indices into the file's list of annotations."""
    names: tuple[str, ...]
    """The name of each object in messages: its id and its image."""
    image_indices: Int64[np.ndarray, "N"]
    """Indices into the data set."""
    labels: Int64[np.ndarray, "N"]
    ignore: Bool[np.ndarray, "N"]
    boxes: Float[np.ndarray, "N 4"]
    """xyxy in image pixels: the annotated box, else the box around the mask; nan for objects that
    have keypoints alone."""
    mask_types: tuple[str, ...]
    """How each mask is given: "polygons", "RLE" or "none"."""
    sizes: Int64[np.ndarray, "M 2"]
    """(height, width) of each image."""

    @property
    def sides(self) -> Float[np.ndarray, "N 2"]:
        """(width, height) of each box."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    def input_sides(self, model: ModelConfig) -> Float[np.ndarray, "N"]:
        """The square root of each box's area, in model-input pixels."""
        if len(self.boxes) == 0:
            return np.zeros(0)
        scales = np.array([input_size(h, w, model.input)[0] / h for h, w in self.sizes.tolist()])
        return np.sqrt(self.sides.prod(axis=1)) * scales[self.image_indices]


def object_table(data: CocoDataset) -> ObjectTable:
    """The usable annotations of a data set as arrays."""
    content = data.content()
    entries: list[CocoAnnotation] = content["annotations"]
    file_names = [image["file_name"] for image in content["images"]]

    # From ids to indices.
    index_of_image = {image["id"]: n for n, image in enumerate(content["images"])}
    index_of_entry = {id(raw): n for n, raw in enumerate(data.raw["annotations"])}
    label_of = {c.id: label for label, c in enumerate(data.categories)}

    sizes = np.array([data.size(n) for n in range(len(data))], dtype=np.int64).reshape(-1, 2)
    images = np.array([index_of_image[raw["image_id"]] for raw in entries], dtype=np.int64)
    names = tuple(
        raw.get("where") or f"annotation {raw['id']} ({file_names[image]})"
        for raw, image in zip(entries, images, strict=True)
    )
    ignore = [bool(raw.get("iscrowd") or raw.get("ignore")) for raw in entries]
    return ObjectTable(
        annotation_indices=np.array([index_of_entry[id(raw)] for raw in entries], dtype=np.int64),
        names=names,
        image_indices=images,
        labels=np.array([label_of[raw["category_id"]] for raw in entries], dtype=np.int64),
        ignore=np.array(ignore, dtype=bool),
        boxes=_boxes(data, entries, images, sizes),
        mask_types=tuple(_mask_type(raw.get("segmentation")) for raw in entries),
        sizes=sizes,
    )


def find_problems(data: CocoDataset, objects: ObjectTable, model: ModelConfig) -> list[Problem]:
    """Problems of the set as a whole; none of them makes an annotation unusable."""
    return [
        *_rare_categories(data, objects),
        *find_box_format(data),
        *_crowded_images(data, objects, model),
        *_beyond_anchors(objects, model),
    ]


def _boxes(
    data: CocoDataset,
    entries: Sequence[CocoAnnotation],
    images: Int64[np.ndarray, "N"],
    sizes: Int64[np.ndarray, "M 2"],
) -> Float[np.ndarray, "N 4"]:
    """Annotated boxes, clipped to their images; reads masks only where there is no box."""
    given = [raw.get("bbox") or (0, 0, 0, 0) for raw in entries]
    boxes_xywh = np.array(given, dtype=np.float64).reshape(-1, 4)
    low = boxes_xywh[:, :2]
    high = low + boxes_xywh[:, 2:]
    limit = sizes[images][:, ::-1]
    boxes = np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)], axis=1)

    missing = ~np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    boxes[missing] = np.nan
    for image in np.unique(images[missing]):
        rows = np.flatnonzero(images == image)  # in the order of the record's annotations
        for row, annotation in zip(rows, data[int(image)].annotations, strict=True):
            if missing[row]:
                boxes[row] = mask_bounds(annotation) or np.nan
    return boxes


def _mask_type(segmentation: Json) -> str:
    if not segmentation:
        return "none"
    return "polygons" if isinstance(segmentation, list) else "RLE"


def _rare_categories(data: CocoDataset, objects: ObjectTable) -> list[Problem]:
    counts = np.bincount(objects.labels[~objects.ignore], minlength=len(data.categories))
    problems = []

    for category, count in zip(data.categories, counts.tolist(), strict=True):
        where = f'category "{category.name}" (id {category.id})'
        if count == 0:
            problems.append(
                Problem(
                    "category without objects",
                    where,
                    "no objects",
                    "check its name and id; a model cannot learn it",
                    False,
                )
            )
        elif count < FEW:
            problems.append(
                Problem(
                    "rare category",
                    where,
                    counted(count, "object"),
                    f"annotate at least {FEW}, or merge it with another category",
                    False,
                )
            )
        if category.id == 0:
            problems.append(
                Problem(
                    "category with id 0",
                    where,
                    "some tools treat 0 as the background",
                    "number categories from 1",
                    False,
                )
            )
    return problems


def find_box_format(data: CocoDataset) -> list[Problem]:
    """Reports boxes that are provably x0, y0, x1, y1 or relative to the image."""
    wrong = {p.image for p in data.dropped}  # their sizes prove nothing
    images = [image for n, image in enumerate(data.raw["images"]) if n not in wrong]
    boxes, limit = raw_boxes(images, data.raw["annotations"])

    if looks_like_corners(boxes, limit):
        beyond = int(_reach_beyond(boxes, limit).sum())
        return [
            Problem(
                "boxes are x0, y0, x1, y1",
                data.name,
                f"{beyond:,} of {counted(len(boxes), 'box')} beyond the image if read as "
                "x, y, width, height; none if read as x0, y0, x1, y1",
                'write x, y, width, height, or run "maskrcnn check --fix"',
                True,
            )
        ]

    if len(boxes) >= _ENOUGH and boxes.min() >= 0 and boxes.max() <= 1:
        return [
            Problem(
                "boxes are relative",
                data.name,
                "all numbers are between 0 and 1",
                "write x, y, width, height in pixels",
                True,
            )
        ]
    return []


def raw_boxes(
    images: Iterable[Json], annotations: Iterable[Json]
) -> tuple[Float[np.ndarray, "n 4"], Int64[np.ndarray, "n 2"]]:
    """Every bbox of four numbers as the file has it, and (width, height) of its image.

    Includes those of unusable annotations.

    Args:
        images: the entries to compare with; boxes of other images are left out.
        annotations: the entries with the boxes.
    """
    sizes = {}
    for image in images:
        with suppress(KeyError, TypeError, ValueError):
            sizes[image["id"]] = (int(image["width"]), int(image["height"]))

    rows = []
    for raw in annotations:
        if not isinstance(raw, dict):
            continue
        box = raw.get("bbox")
        image_id = raw.get("image_id")
        is_box = (
            isinstance(box, list | tuple)
            and len(box) == 4
            and all(type(v) in (int, float) for v in box)
        )
        if is_box and isinstance(image_id, int | np.integer) and image_id in sizes:
            rows.append((*box, *sizes[image_id]))

    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    table = table[np.isfinite(table).all(axis=1)]
    return table[:, :4], table[:, 4:].astype(np.int64)


def looks_like_corners(boxes: Float[np.ndarray, "n 4"], limit: Int64[np.ndarray, "n 2"]) -> bool:
    """Whether the boxes fit their images as x0, y0, x1, y1 but not as x, y, width, height.

    Args:
        boxes: as annotated.
        limit: (width, height) of each box's image.
    """
    if len(boxes) < _ENOUGH:
        return False
    fits = (
        (boxes[:, 2:] > boxes[:, :2]).all()
        and (boxes >= 0).all()
        and (boxes[:, 2:] <= limit + 1).all()
    )
    return bool(fits and _reach_beyond(boxes, limit).mean() > _BEYOND)


def _reach_beyond(boxes: np.ndarray, limit: np.ndarray) -> np.ndarray:
    return np.any(boxes[:, :2] + boxes[:, 2:] > limit + 1, axis=1)


def _crowded_images(data: CocoDataset, objects: ObjectTable, model: ModelConfig) -> list[Problem]:
    """Images with more objects than the model can return detections."""
    most = model.box.max_detections
    counts = np.bincount(objects.image_indices[~objects.ignore], minlength=len(data))
    names = [image["file_name"] for image in data.content()["images"]]

    suggestion = (
        "the training recipe raises the limit; or set "
        f"model.box.max_detections={int(counts.max(initial=0))}. Evaluate with --max-detections"
    )
    return [
        Problem(
            "more objects than detections",
            names[n],
            f"{counted(counts[n], 'object')}; "
            f"the small model returns at most {counted(most, 'detection')}",
            suggestion,
            False,
        )
        for n in np.flatnonzero(counts > most)
    ]


def _beyond_anchors(objects: ObjectTable, model: ModelConfig) -> list[Problem]:
    """Objects far smaller or larger than every anchor."""
    anchors = [side for level in model.rpn.sizes for side in level]
    low = SMALLEST * min(anchors)
    high = LARGEST * max(anchors)
    sides = objects.input_sides(model)
    problems = []

    for row in np.flatnonzero(((sides < low) | (sides > high)) & ~objects.ignore):
        width, height = objects.sides[row]
        if sides[row] < low:
            kind = "object too small for the anchors"
            suggestion = (
                f"the small model's anchors start at {min(anchors):g} px; the training recipe "
                "fits them, or enlarge images with model.input.scale=2"
            )
        else:
            kind = "object too large for the anchors"
            suggestion = (
                f"the small model's anchors end at {max(anchors):g} px; the training recipe "
                "fits them, or shrink images with model.input.max_size"
            )
        problems.append(
            Problem(
                kind,
                objects.names[row],
                f"{width:.3g} x {height:.3g} px; {sides[row]:.3g} px in the model's input",
                suggestion,
                False,
                annotation=int(objects.annotation_indices[row]),
            )
        )
    return problems
