"""What a person could have annotated instead of every mask, and the seconds that it takes.

In: COCO content with a box and a mask for each object. Out: the same with less.

Source of the seconds: Cheng, Parkhi & Kirillov 2022, "Pointly-Supervised Instance Segmentation",
section 1: 79 s for a polygon mask, 7 s for a box, 0.9 s for a point.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from maskrcnn.annotations.coco_types import CocoContent
from maskrcnn.annotations.point_labels import with_points

POINTS = 10  # per object
SHARE = 0.1  # of the objects that have masks, in the mixtures
MASK_SECONDS, BOX_SECONDS, POINT_SECONDS = 79.0, 7.0, 0.9
POINTS_SECONDS = BOX_SECONDS + POINTS * POINT_SECONDS

KINDS = {
    "masks": "masks",
    "points": f"boxes and {POINTS} points",
    "boxes": "boxes",
    "boxes_masks": f"boxes, {SHARE:.0%} with masks",
    "points_masks": f"boxes and {POINTS} points, {SHARE:.0%} with masks",
}


def annotated(content: CocoContent, kind: str, seed: int) -> CocoContent:
    """Returns the annotations as a person makes them who works in this way.

    Args:
        content: annotations with boxes and masks.
        kind: one of KINDS.
        seed: decides which objects of a mixture have masks.
    """
    if kind == "masks":
        return content
    keep = with_masks(content, seed) if kind.endswith("_masks") else set()

    if kind.startswith("points"):
        pointed = with_points(content, POINTS)["annotations"]
        pairs = zip(content["annotations"], pointed, strict=True)
        annotations = [whole if whole["id"] in keep else less for whole, less in pairs]
    else:
        annotations = [
            a if a["id"] in keep or a.get("iscrowd") else _box_only(a)
            for a in content["annotations"]
        ]
    return {**content, "annotations": annotations}


def _box_only(annotation: Any) -> Any:
    # The area is that of the mask.
    return {k: v for k, v in annotation.items() if k not in ("segmentation", "area")}


def with_masks(content: CocoContent, seed: int) -> set[int]:
    """The ids of the objects that have masks in a mixture, the same for every kind of mixture."""
    ids = sorted(a["id"] for a in content["annotations"] if not a.get("iscrowd"))
    count = max(1, round(SHARE * len(ids)))
    return set(np.random.default_rng(seed).permutation(ids)[:count].tolist())


def seconds_per_object(kind: str) -> float:
    """The mean time to annotate an object."""
    base = {"masks": MASK_SECONDS, "points": POINTS_SECONDS, "boxes": BOX_SECONDS}
    name, _, mixed = kind.partition("_")
    return (1 - SHARE) * base[name] + SHARE * MASK_SECONDS if mixed else base[name]


def annotation_seconds(content: CocoContent, kind: str, images: Collection[int]) -> float:
    """The time to annotate the objects of these images, by their ids."""
    objects = sum(a["image_id"] in images and not a.get("iscrowd") for a in content["annotations"])
    return objects * seconds_per_object(kind)
