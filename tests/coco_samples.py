"""A small synthetic dataset in COCO format for the tests of annotations and augmentation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn.annotations import rle

KEYPOINTS = ["nose", "left_hand", "right_hand"]
HEIGHT, WIDTH = 60, 80


def content() -> dict[str, Any]:
    """Three images (the last without objects), two categories, each kind of annotation."""
    dense = np.zeros((HEIGHT, WIDTH), bool)
    dense[10:30, 50:70] = True
    dense[15:20, 55:62] = False  # a hole
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[40:55, 5:75] = True
    triangle = [10.0, 10.0, 40.0, 12.0, 20.0, 45.0]
    two_parts = [[5.0, 5.0, 25.0, 5.0, 25.0, 20.0, 5.0, 20.0], [30.0, 30.0, 45.0, 30.0, 45.0, 50.0]]
    keypoints = [22, 15, 2, 30, 20, 1, 15, 25, 2]
    return {
        "images": [
            {"id": 70 + i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH}
            for i in range(3)
        ],
        "categories": [
            {"id": 9, "name": "figure", "keypoints": KEYPOINTS, "skeleton": [[1, 2], [1, 3]]},
            {"id": 4, "name": "box"},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 70,
                "category_id": 9,
                "bbox": [10, 10, 30, 35],
                "segmentation": [triangle],
                "keypoints": keypoints,
                "num_keypoints": 3,
            },
            {
                "id": 2,
                "image_id": 70,
                "category_id": 4,
                "bbox": [50, 10, 20, 20],
                "segmentation": rle.encode(dense),
                "area": 365,
                "iscrowd": 0,
            },
            {
                "id": 3,
                "image_id": 70,
                "category_id": 4,
                "segmentation": {
                    "size": [HEIGHT, WIDTH],
                    "counts": rle.counts(rle.encode(crowd)).tolist(),
                },
                "iscrowd": 1,
            },
            {"id": 4, "image_id": 71, "category_id": 4, "bbox": [5.5, 5.5, 20, 30]},
            {
                "id": 5,
                "image_id": 71,
                "category_id": 9,
                "keypoints": [40, 20, 2, 60, 30, 1, 0, 0, 0],
            },
            {
                "id": 6,
                "image_id": 71,
                "category_id": 4,
                "segmentation": two_parts,
                "keypoints": [],
                "ignore": 0,
            },
        ],
    }


def write(folder: Path, data: dict[str, Any] | None = None) -> Path:
    """Writes the annotations and random images of the right sizes; returns the annotation file."""
    data = copy.deepcopy(content()) if data is None else data
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = rng.integers(0, 256, (HEIGHT // 10, WIDTH // 10, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR).save(
            folder / f"{i}.png"
        )
    (folder / "train.json").write_text(json.dumps(data))
    return folder / "train.json"
