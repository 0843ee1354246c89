"""What only the whole data set shows: rare categories, objects that the anchors do not see, boxes written in another form.

In: a data set and the model that would be trained. Out: `Objects`, its usable annotations as arrays, and `findings`, a list of `Problem`s.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from ..annotations.annotation import mask_bounds
from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import Problem
from ..config import ModelConfig
from ..preprocess import input_size

FEW = 10
"""Objects below which a category is called rare."""
SMALLEST, LARGEST = 0.5, 2.0
"""Objects below this part of the smallest anchor's side, or above this multiple of the largest one's, overlap no anchor enough to be learnt well."""
_ENOUGH = 10  # boxes, below which nothing is said of their form
_BEYOND = 0.25  # of the boxes reach beyond their images when they are x0, y0, x1, y1: most of those in the right or lower half


@dataclass(frozen=True)
class Objects:
    """The usable annotations of a data set."""

    places: Int64[np.ndarray, "N"]
    """In the file's list."""
    names: tuple[str, ...]
    """How a message calls each: its id and its image."""
    images: Int64[np.ndarray, "N"]
    """Indices into the data set."""
    labels: Int64[np.ndarray, "N"]
    ignore: Bool[np.ndarray, "N"]
    boxes: Float[np.ndarray, "N 4"]
    """xyxy in the image's pixels: the annotated one, or the one around the mask; nan for objects of keypoints alone."""
    forms: tuple[str, ...]
    """polygons, RLE, or none: how the mask is given."""
    sizes: Int64[np.ndarray, "M 2"]
    """(height, width) of each image."""

    @property
    def sides(self) -> Float[np.ndarray, "N 2"]:
        """(width, height)."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    def seen_as(self, model: ModelConfig) -> Float[np.ndarray, "N"]:
        """The square root of each box's area, in pixels of the model's input."""
        scales = np.array([(input_size(h, w, model.input)[0] / h) for h, w in self.sizes.tolist()])
        return (
            np.sqrt(self.sides.prod(axis=1)) * scales[self.images]
            if len(self.boxes)
            else np.zeros(0)
        )


def objects_of(data: CocoDataset) -> Objects:
    """The usable annotations as arrays."""
    content = data.content()
    images = {image["id"]: n for n, image in enumerate(content["images"])}
    labels = {c.id: label for label, c in enumerate(data.categories)}
    at = {id(raw): place for place, raw in enumerate(data.raw["annotations"])}
    entries: list[dict[str, Any]] = content["annotations"]
    sizes = np.array([data.size(n) for n in range(len(data))], dtype=np.int64).reshape(-1, 2)
    where = np.array([images[raw["image_id"]] for raw in entries], dtype=np.int64)
    return Objects(
        places=np.array([at[id(raw)] for raw in entries], dtype=np.int64),
        names=tuple(
            raw.get("where") or f"annotation {raw['id']} ({content['images'][n]['file_name']})"
            for raw, n in zip(entries, where, strict=True)
        ),
        images=where,
        labels=np.array([labels[raw["category_id"]] for raw in entries], dtype=np.int64),
        ignore=np.array(
            [bool(raw.get("iscrowd") or raw.get("ignore")) for raw in entries], dtype=bool
        ),
        boxes=_boxes(data, entries, where, sizes),
        forms=tuple(_form(raw.get("segmentation")) for raw in entries),
        sizes=sizes,
    )


def findings(data: CocoDataset, objects: Objects, model: ModelConfig) -> list[Problem]:
    """Problems of the set as a whole; none of them makes an annotation unusable."""
    return [
        *_rare(data, objects),
        *other_form(data),
        *_crowded(data, objects, model),
        *_beyond_anchors(data, objects, model),
    ]


def _boxes(
    data: CocoDataset,
    entries: list[dict[str, Any]],
    where: Int64[np.ndarray, "N"],
    sizes: Int64[np.ndarray, "M 2"],
) -> np.ndarray:
    """[N, 4]; only where no box is annotated, the mask is read."""
    given = np.array(
        [raw.get("bbox") or (0, 0, 0, 0) for raw in entries], dtype=np.float64
    ).reshape(-1, 4)
    low, high = given[:, :2], given[:, :2] + given[:, 2:]
    limit = sizes[where][:, ::-1]
    boxes = np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)], axis=1)
    missing = ~np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    boxes[missing] = np.nan
    for n in np.unique(where[missing]):
        rows = np.flatnonzero(where == n)  # in the order of the record's annotations
        for row, annotation in zip(rows, data[int(n)].annotations, strict=True):
            if missing[row]:
                boxes[row] = mask_bounds(annotation) or np.nan
    return boxes


def _form(segmentation: Any) -> str:
    return "none" if not segmentation else "polygons" if isinstance(segmentation, list) else "RLE"


def _rare(data: CocoDataset, objects: Objects) -> list[Problem]:
    counts = np.bincount(objects.labels[~objects.ignore], minlength=len(data.categories))
    problems = []
    for category, count in zip(data.categories, counts.tolist(), strict=True):
        where = f'category "{category.name}" (id {category.id})'
        if count == 0:
            problems.append(
                Problem(
                    "category without objects",
                    where,
                    "no object",
                    "is its name or id right? It cannot be learnt",
                    False,
                )
            )
        elif count < FEW:
            objects_ = f"{count} object{'s' * (count != 1)}"
            problems.append(
                Problem(
                    "rare category",
                    where,
                    objects_,
                    f"annotate {FEW} or more, or merge it with another",
                    False,
                )
            )
        if category.id == 0:
            problems.append(
                Problem(
                    "category with id 0",
                    where,
                    "some tools take 0 for the background",
                    "number categories from 1",
                    False,
                )
            )
    return problems


def other_form(data: CocoDataset) -> list[Problem]:
    """Boxes that are x0, y0, x1, y1 or relative to the image, as far as the numbers prove it."""
    boxes, limit = raw_boxes(data)
    if looks_like_corners(boxes, limit):
        beyond = int(_reach_beyond(boxes, limit).sum())
        detail = f"{beyond} of {len(boxes)} boxes reach beyond their image as x, y, width, height, none as x0, y0, x1, y1"
        return [
            Problem(
                "boxes are x0, y0, x1, y1",
                data.name,
                detail,
                'write x, y, width, height; "maskrcnn check --fix" does',
                True,
            )
        ]
    if len(boxes) >= _ENOUGH and boxes.min() >= 0 and boxes.max() <= 1:
        return [
            Problem(
                "boxes are relative",
                data.name,
                "all numbers are from 0 to 1",
                "write x, y, width, height in pixels",
                True,
            )
        ]
    return []


def raw_boxes(data: CocoDataset) -> tuple[Float[np.ndarray, "n 4"], Int64[np.ndarray, "n 2"]]:
    """Every bbox of four numbers as the file has it, usable or not, and (width, height) of its image."""
    sizes = {}
    for image in data.raw["images"]:
        with suppress(KeyError, TypeError, ValueError):
            sizes[image["id"]] = (int(image["width"]), int(image["height"]))
    rows = []
    for raw in data.raw["annotations"]:
        box, place = (
            (raw.get("bbox"), raw.get("image_id")) if isinstance(raw, dict) else (None, None)
        )
        proper = (
            isinstance(box, list | tuple)
            and len(box) == 4
            and all(type(v) in (int, float) for v in box)
        )
        if proper and isinstance(place, int | np.integer) and place in sizes:
            rows.append((*box, *sizes[place]))
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    table = table[np.isfinite(table).all(axis=1)]
    return table[:, :4], table[:, 4:].astype(np.int64)


def looks_like_corners(boxes: Float[np.ndarray, "n 4"], limit: Int64[np.ndarray, "n 2"]) -> bool:
    """Whether boxes make sense as x0, y0, x1, y1 in their images, all of them, and do not as x, y, width, height."""
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


def _crowded(data: CocoDataset, objects: Objects, model: ModelConfig) -> list[Problem]:
    """Images with more objects than the model answers."""
    most = model.box.max_detections
    counts = np.bincount(objects.images[~objects.ignore], minlength=len(data))
    names = [image["file_name"] for image in data.content()["images"]]
    suggestion = f"the recipe of a training allows more, or set model.box.max_detections={int(counts.max(initial=0))}; evaluate with --max-detections"
    return [
        Problem(
            "more objects than detections",
            names[n],
            f"{counts[n]} objects, the small model answers at most {most}",
            suggestion,
            False,
        )
        for n in np.flatnonzero(counts > most)
    ]


def _beyond_anchors(data: CocoDataset, objects: Objects, model: ModelConfig) -> list[Problem]:
    """Objects far smaller or larger than every anchor."""
    sides = [side for level in model.rpn.sizes for side in level]
    low, high = SMALLEST * min(sides), LARGEST * max(sides)
    seen = objects.seen_as(model)
    problems = []
    for row in np.flatnonzero(((seen < low) | (seen > high)) & ~objects.ignore):
        small = seen[row] < low
        width, height = objects.sides[row]
        suggestion = f"those of the small model begin at {min(sides):g} px; the recipe of a training fits them, or magnify with model.input.scale=2"
        if not small:
            suggestion = f"those of the small model end at {max(sides):g} px; the recipe of a training fits them, or shrink with model.input.max_size"
        kind = (
            "object smaller than the anchors see" if small else "object larger than the anchors see"
        )
        detail = f"{width:.3g} x {height:.3g} px, {seen[row]:.3g} px across for the model"
        problems.append(
            Problem(
                kind,
                objects.names[row],
                detail,
                suggestion,
                False,
                annotation=int(objects.places[row]),
            )
        )
    return problems
