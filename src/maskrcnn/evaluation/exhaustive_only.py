"""Images that are annotated for only some of the categories: what is found of the others is neither right nor wrong.

Where a category was not looked for in an image, its detections there are left out. Where only some of its objects are annotated, those count, and
what matches none of them is ignored: the whole image is a crowd region of the category. LVIS judges in the same way.

Source: Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..annotations.labeled_categories import KEYS, labeled_ids
from ..config import Category

Results = Sequence[Mapping[str, Any]]


def to_judge(
    results: Results, truth: Mapping[str, Any], categories: Sequence[Category]
) -> tuple[Results, Mapping[str, Any]]:
    """The results and the annotations that the metric shall see; the same ones where every image is annotated for all categories."""
    partial = {image["id"]: image for image in truth["images"] if any(key in image for key in KEYS)}
    if not partial:
        return results, truth
    annotated: dict[Any, set[int]] = {i: set() for i in partial}
    for annotation in truth["annotations"]:
        if annotation["image_id"] in annotated:
            annotated[annotation["image_id"]].add(annotation["category_id"])
    known = {c.id for c in categories}
    looked_for: dict[Any, frozenset[int]] = {}
    regions = []
    for i, image in partial.items():
        if (labeled := labeled_ids(image, annotated[i], known)) is not None:
            looked_for[i] = labeled | annotated[i]
            regions += [
                _everywhere(image, category)
                for category in sorted((annotated[i] & known) - labeled)
            ]
    kept = [
        r
        for r in results
        if r["image_id"] not in looked_for or r["category_id"] in looked_for[r["image_id"]]
    ]
    return kept, {**truth, "annotations": [*truth["annotations"], *regions]}


def _everywhere(image: Mapping[str, Any], category: int) -> dict[str, Any]:
    """A crowd region of the size of the image."""
    width, height = image["width"], image["height"]
    polygon = [0, 0, width, 0, width, height, 0, height]
    region = {
        "bbox": [0, 0, width, height],
        "area": width * height,
        "segmentation": [polygon],
        "iscrowd": 1,
    }
    return {"image_id": image["id"], "category_id": category, **region}
