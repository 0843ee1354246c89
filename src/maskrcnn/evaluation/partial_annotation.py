"""Images annotated for only some categories: detections of the others are not counted.

If a category was not annotated in an image, its detections there are dropped. If only some of its
objects are annotated, these count, and detections that match none of them are ignored: the whole
image becomes a crowd region of the category. LVIS evaluates in the same way.

Source: Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", section
3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..annotations.coco_types import CocoAnnotation, CocoContent, CocoImage, CocoResult
from ..annotations.labeled_categories import KEYS, labeled_ids
from ..config import Category


def ignore_unannotated(
    results: Sequence[CocoResult], truth: CocoContent, categories: Sequence[Category]
) -> tuple[Sequence[CocoResult], CocoContent]:
    """The results and the annotations to compare.

    They are the given ones if every image is annotated for all categories.

    Args:
        results: COCO results.
        truth: COCO annotations.
        categories: those of `truth`.
    """
    partial = {image["id"]: image for image in truth["images"] if any(key in image for key in KEYS)}
    if not partial:
        return results, truth

    annotated: dict[Any, set[int]] = {i: set() for i in partial}
    for annotation in truth["annotations"]:
        if annotation["image_id"] in annotated:
            annotated[annotation["image_id"]].add(annotation["category_id"])

    known = {c.id for c in categories}
    compared: dict[Any, frozenset[int]] = {}
    regions: list[CocoAnnotation] = []
    for i, image in partial.items():
        if (labeled := labeled_ids(image, annotated[i], known)) is not None:
            compared[i] = labeled | annotated[i]
            incomplete = sorted((annotated[i] & known) - labeled)
            regions += [_whole_image(image, category) for category in incomplete]

    kept = [
        r
        for r in results
        if r["image_id"] not in compared or r["category_id"] in compared[r["image_id"]]
    ]
    return kept, {**truth, "annotations": [*truth["annotations"], *regions]}


def _whole_image(image: CocoImage, category: int) -> CocoAnnotation:
    """A crowd region of a category that covers the image."""
    width, height = image["width"], image["height"]
    return {
        "id": 0,
        "image_id": image["id"],
        "category_id": category,
        "bbox": [0, 0, width, height],
        "area": width * height,
        "segmentation": [[0, 0, width, 0, width, height, 0, height]],
        "iscrowd": 1,
    }
