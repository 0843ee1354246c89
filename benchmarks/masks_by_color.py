"""How good are masks by color? `python -m benchmarks.masks_by_color [--data FOLDER]` (3 minutes).

In: annotations with masks. The masks are taken away, and what `augmentation/cut_out.py` finds in
the colors is compared with them. Out: the tables of docs/decisions/0025.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from pycocotools import mask as coco_mask

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.augmentation import geometry, training_set
from maskrcnn.augmentation.copy_paste import hide
from maskrcnn.augmentation.cut_out import MOST_SHARED, masks_by_color
from maskrcnn.augmentation.objects import ViewObjects, pixels_of
from maskrcnn.augmentation.training_set import TrainingSet
from maskrcnn.config import AugmentConfig
from maskrcnn.preprocess import input_size

from .small_data.annotation_kinds import annotated
from .small_data.queue import DATA, Setup
from .small_data.sources import SCENES, image_folder, selected, whole_training_set

SETS = ("scenes", "nuclei", "plants", "coco_mini_kp")
VIEWS = 3  # of each image
MOST_LEFT = 0.75  # of a box that counts as cropped or covered
HALF = 128  # of 255
TURN = 30  # degrees at most
PLAIN = AugmentConfig(flip_horizontal=0, scale=(1, 1))
Key = tuple[int, int, int]
"""Image, seed of the view, id of the annotation."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--images", type=int, default=150, help="of each set, at most")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup(given.data, Path(scratch), Path(scratch) / "results")
        for name in SETS:
            if name not in SCENES and not (given.data / name).exists():
                print(f"{name}: not in {given.data}, left out")
                continue
            whole: Any = whole_training_set(name, setup)
            content = selected(whole, range(min(given.images, len(whole["images"]))))
            annotations = [a for a in content["annotations"] if not a.get("iscrowd")]
            content = {**content, "annotations": annotations}
            images = image_folder(name, setup)
            print(f"{name} ({len(content['images'])} images, {len(annotations)} objects)")
            found(content, images)
            boxes(content, images)


def found(content: Any, images: Path) -> None:
    """Prints which objects have a mask by color, its IoU with the annotated one, and the time."""
    data = CocoDataset(content, images)
    truth = data.truth()
    alone: list[float | None] = []
    beside: list[float | None] = []
    crowded, seconds = 0, 0.0
    for index in range(len(data)):
        annotations = [
            a for a in truth["annotations"] if a["image_id"] == content["images"][index]["id"]
        ]
        if not annotations:
            continue
        pixels = np.asarray(data.image(index))
        size = pixels.shape[:2]
        corners = np.array([a["bbox"] for a in annotations], float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        start = time.perf_counter()
        masks = masks_by_color(pixels, corners, np.zeros((len(corners), 0, 3)))
        seconds += time.perf_counter() - start
        for i, (annotation, mask) in enumerate(zip(annotations, masks, strict=True)):
            shared = shared_part(i, corners, size)
            if shared > MOST_SHARED:
                crowded += 1
                continue
            iou = None
            if mask is not None:
                ours = rle.encode_crop(mask.crop, mask.x0, mask.y0, size)
                iou = float(coco_mask.iou([ours], [as_rle(annotation, size)], [0])[0, 0])
            (beside if shared else alone).append(iou)

    total = max(1, len(alone) + len(beside) + crowded)
    for name, values in (("isolated", alone), (f"up to {MOST_SHARED:.0%} shared", beside)):
        kept = [value for value in values if value is not None]
        print(
            f"  {name}: {len(values) / total:.0%} of the objects, {len(kept) / max(1, len(values)):.0%}"
            f" of them with a mask, mean IoU {np.mean(kept or [np.nan]):.2f}"
        )
    print(f"  {1000 * seconds / len(data):.0f} ms per image")


def as_rle(annotation: Any, size: tuple[int, ...]) -> Any:
    """The annotated mask, which may be polygons."""
    stored = annotation["segmentation"]
    if isinstance(stored, list):
        return coco_mask.merge(coco_mask.frPyObjects(stored, *size))
    return coco_mask.frPyObjects(stored, *size) if isinstance(stored["counts"], list) else stored


def shared_part(index: int, boxes: np.ndarray, size: tuple[int, ...]) -> float:
    """The part of a box that lies in others."""
    x0, y0, x1, y1 = np.clip(boxes[index], 0, (size[1], size[0]) * 2).round().astype(int)
    covered = np.zeros((max(y1 - y0, 1), max(x1 - x0, 1)), bool)
    for j, (a, b, c, d) in enumerate(boxes.round().astype(int)):
        if j != index and c > x0 and d > y0:
            covered[max(b - y0, 0) : d - y0, max(a - x0, 0) : c - x0] = True
    return float(covered.mean())


def boxes(content: Any, images: Path) -> None:
    """Prints the IoU of boxes in random views with those of annotated masks."""
    whole = CocoDataset(content, images)
    boxed = CocoDataset(annotated(content, "boxes", 0), images)
    model = mr.choose_recipe(whole, pretrained=None, memory=24, device="cpu").model
    model = replace(model, keypoint=None)
    shorter = np.median([min(input_size(*whole.size(i), model.input)) for i in range(len(whole))])

    crop = replace(PLAIN, crop=int(shorter) // 2)
    for name, augment, paste in (
        ("cropped", crop, False),
        ("covered", PLAIN, True),
        ("turned", replace(PLAIN, rotation=TURN), False),
    ):
        sets = [TrainingSet(data, model, augment) for data in (whole, boxed, boxed)]
        covering = sets[0] if paste else None
        true, with_masks = (in_views(each, covering) for each in sets[:2])
        with mock.patch.object(training_set, "masks_by_color", no_masks):
            without = in_views(sets[2], covering)
        keys = [key for key in true if key in with_masks and key in without]
        if not augment.rotation:
            keys = [key for key in keys if true[key].part < MOST_LEFT]
        means = [
            np.mean([box_iou(found[key].box, true[key].box) for key in keys] or [np.nan])
            for found in (without, with_masks)
        ]
        print(
            f"  {name}: {len(keys)} boxes, IoU {means[0]:.3f} without and {means[1]:.3f} with masks"
        )


@dataclass(frozen=True)
class Found:
    """An object in a view that is not ignored."""

    box: np.ndarray
    part: float
    """Of the annotated box, moved to the view: what is inside it and not covered."""


def in_views(examples: TrainingSet, covering: TrainingSet | None) -> dict[Key, Found]:
    """The objects of random views, over which objects of other images are pasted.

    Args:
        examples: the images.
        covering: the same images with masks, of which every other object is pasted; None = nothing.
    """
    found: dict[Key, Found] = {}
    for index in range(len(examples)):
        annotated_boxes = {a.id: a.box for a in examples.dataset[index].annotations}
        for seed in range(VIEWS):
            image = examples._image(index)
            view = examples._draw_view(image, np.random.default_rng(seed))
            objects = examples._objects(image, view)
            covered = np.zeros(view.size, bool)
            if covering is not None:
                other = covering._image((index + 1 + seed) % len(covering))
                cover(covered, covering._objects(other, view))
                objects = hide(objects, covered)

            for row in objects.visible:
                if objects.ignore[row]:
                    continue
                number = int(objects.annotation_ids[row])
                box = geometry.move_boxes(view.matrix, np.array([annotated_boxes[number]]))[0]
                left, top, right, bottom = pixels_of(np.clip(box, 0, (*view.size[::-1],) * 2))
                seen = (~covered[top:bottom, left:right]).sum()
                found[index, seed, number] = Found(objects.boxes[row], seen / area(box))
    return found


def cover(covered: np.ndarray, objects: ViewObjects) -> None:
    """Marks the pixels of every other object."""
    for row in objects.visible[::2]:
        mask = objects.masks[row]
        if mask is not None:
            left, top, right, bottom = pixels_of(objects.boxes[row])
            covered[top:bottom, left:right] |= mask.raster(objects.boxes[row]) >= HALF


def no_masks(pixels: np.ndarray, boxes: np.ndarray, points: np.ndarray) -> list[None]:
    return [None] * len(boxes)


def box_iou(box: np.ndarray, other: np.ndarray) -> float:
    width, height = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    common = max(0.0, width) * max(0.0, height)
    return float(common / (area(box) + area(other) - common))


def area(box: np.ndarray) -> float:
    return float(np.prod(box[2:] - box[:2]))


if __name__ == "__main__":
    main()
