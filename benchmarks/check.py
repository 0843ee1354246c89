"""Dataset checks: annotations checked per second.

Runs on a synthetic COCO file in memory with 200,000 objects: 60 % polygons (about 27 points, as in
COCO), the others compressed RLE and a few uncompressed RLE; a tenth have 17 keypoints. All checks
of `maskrcnn check` that read annotations run; no image is opened.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import maskrcnn as mr
from maskrcnn.annotations.rle import counts, encode_crop

from .timing import in_turns

SIZE, CATEGORIES, KEYPOINTS = (480, 640), 80, 17


def run(quick: bool) -> dict[str, Any]:
    content = synthetic_coco(5_000 if quick else 200_000)
    number = len(content["annotations"])
    work = {
        "opening the dataset": lambda: mr.CocoDataset(content),
        "maskrcnn check": lambda: mr.check_dataset(content),
    }
    times = in_turns(work, rounds=1 if quick else 3, warm_up=0)
    rates = {f"annotations per second, {name}": round(number / times.median(name)) for name in work}
    return {"rows": times.rows(), "annotations": number, **rates, "seconds": times.seconds}


def synthetic_coco(number: int, seed: int = 0) -> dict[str, Any]:
    """A COCO file with `number` objects, 7 per image."""
    rng = np.random.default_rng(seed)
    images = [
        {"id": n, "height": SIZE[0], "width": SIZE[1], "file_name": f"{n}.jpg"}
        for n in range(1, number // 7 + 2)
    ]
    keypoints = [f"left_{j // 2}" if j % 2 else f"right_{j // 2}" for j in range(KEYPOINTS)]
    categories: list[dict[str, Any]] = [
        {"id": n, "name": f"category {n}"} for n in range(1, CATEGORIES + 1)
    ]
    categories[0] |= {"keypoints": keypoints, "skeleton": []}
    annotations = [synthetic_object(rng, n) for n in range(1, number + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def synthetic_object(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """A star-shaped polygon or an elliptic RLE mask; one in ten is a person with keypoints."""
    side = 2 ** rng.uniform(3.5, 7)
    center = rng.uniform([side, side], [SIZE[1] - side, SIZE[0] - side])
    angles = np.linspace(0, 2 * np.pi, int(rng.integers(8, 46)), endpoint=False)
    points = center + side * rng.uniform(0.6, 1, len(angles))[:, None] * np.stack(
        [np.cos(angles), np.sin(angles)], axis=1
    )
    points = points.round(2)
    low, high = points.min(axis=0), points.max(axis=0)

    entry = {
        "id": number,
        "image_id": (number - 1) // 7 + 1,
        "category_id": int(rng.integers(2, CATEGORIES + 1)),
        "iscrowd": 0,
    }

    kind = rng.random()
    if kind < 0.6:
        x, y = points.T
        area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        entry |= {"segmentation": [points.reshape(-1).tolist()]}
    else:
        low, high = np.floor(low), np.ceil(high)
        y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
        ellipse = ((x + 0.5 - (low[0] + high[0]) / 2) / (high[0] - low[0])) ** 2 + (
            (y + 0.5 - (low[1] + high[1]) / 2) / (high[1] - low[1])
        ) ** 2 <= 0.25
        rle = encode_crop(ellipse, int(low[0]), int(low[1]), SIZE)
        area = float(ellipse.sum())
        entry |= {"segmentation": rle if kind < 0.97 else rle | {"counts": counts(rle).tolist()}}

    entry |= {"bbox": [*low.tolist(), *(high - low).tolist()], "area": area}
    if rng.random() < 0.1:
        keypoints = np.concatenate(
            [
                rng.uniform(low, high, (KEYPOINTS, 2)).astype(int),
                rng.integers(0, 3, (KEYPOINTS, 1)),
            ],
            axis=1,
        )
        keypoints[keypoints[:, 2] == 0] = 0
        entry |= {
            "category_id": 1,
            "keypoints": keypoints.reshape(-1).tolist(),
            "num_keypoints": int((keypoints[:, 2] > 0).sum()),
        }
    return entry
