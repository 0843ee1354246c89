"""Evaluation: boxes and masks of 5,000 images with 80 categories, ours against pycocotools,
and the largest difference of their numbers.

Truth and detections are synthetic dicts in memory: ellipses, detected with noise, wrong categories
and false positives. Each side computes its 12 numbers from these; ours also computes them per
category. pycocotools modifies its input, so it gets copies that were made before timing starts.

"limit s" is the time of the overlaps alone, in C, divided by the cores: no evaluation that compares
every detection with every object of its image and category takes less.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import time
from collections import defaultdict
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import maskrcnn as mr
from maskrcnn.annotations.rle import encode_crop

from .timing import in_turns

SIZE, CATEGORIES = (480, 640), 80


def run(quick: bool, images: int | None = None) -> dict[str, Any]:
    images = images or (300 if quick else 5000)
    truth, results = synthetic_coco(images)
    rounds = 1 if quick else 2
    copies = [(copy.deepcopy(truth), copy.deepcopy(results)) for _ in range(rounds)]
    theirs: dict[str, list[float]] = {}
    ours: list[mr.Evaluation] = []
    work = {
        "pycocotools": lambda: theirs.update(by_pycocotools(*copies.pop())),
        "ours": lambda: ours.append(mr.evaluate(results, truth)),
    }

    times = in_turns(work, rounds, warm_up=0)
    difference = max(
        abs(a - b)
        for task, numbers in theirs.items()
        for a, b in zip(numbers, ours[-1].tasks[task].values(), strict=True)
    )

    counts = {"images": images, "objects": len(truth["annotations"]), "detections": len(results)}
    same = {"largest difference of the 24 numbers": difference}
    limit = min(overlap_seconds(truth, results) for _ in range(3)) / len(os.sched_getaffinity(0))
    rows = times.rows("pycocotools")
    for row in rows:
        row["limit s"] = limit
        row["times its limit"] = times.median(row["what"]) / limit
    return {
        "rows": rows,
        **counts,
        **same,
        "numbers": ours[-1].tasks,
        "seconds": times.seconds,
    }


def overlap_seconds(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """Seconds of the IoUs of all boxes and masks of one image and category, on one core.

    Grouping is not counted, nor is anything in Python but one call per group.
    """
    groups: dict[tuple[int, int], tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for side, entries in enumerate((results, truth["annotations"])):
        for entry in entries:
            groups[entry["image_id"], entry["category_id"]][side].append(entry)

    work = []
    for found, wanted in groups.values():
        if not found or not wanted:
            continue
        crowd = [entry["iscrowd"] for entry in wanted]
        for kind in ("bbox", "segmentation"):
            pair = [[entry[kind] for entry in entries] for entries in (found, wanted)]
            if kind == "bbox":
                pair = [np.array(boxes, dtype=np.float64) for boxes in pair]
            work.append((*pair, crowd))

    start = time.perf_counter()
    for arguments in work:
        coco_mask.iou(*arguments)
    return time.perf_counter() - start


def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The 12 COCO metrics of boxes and of masks."""
    numbers = {}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()

        for task in ("bbox", "segm"):
            fields = (
                "image_id",
                "category_id",
                "score",
                "bbox" if task == "bbox" else "segmentation",
            )
            evaluator = COCOeval(
                coco,
                coco.loadRes([{name: entry[name] for name in fields} for entry in results]),
                task,
            )

            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            numbers[task] = evaluator.stats.tolist()
    return numbers


def synthetic_coco(images: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """About 7 objects and 20 detections per image, as in COCO."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(rng.poisson(7)):
            side = 2 ** rng.uniform(3.5, 8, 2)
            center = rng.uniform([0, 0], [SIZE[1], SIZE[0]])
            category = int(rng.integers(1, CATEGORIES + 1))
            rle, box, area = ellipse(center, side)
            if area == 0:
                continue

            crowd = int(rng.random() < 0.01)
            entry = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": category,
                "iscrowd": crowd,
            }
            annotations.append({**entry, "segmentation": rle, "bbox": box, "area": area})

            for _ in range(rng.poisson(2)):
                label = category if rng.random() < 0.8 else int(rng.integers(1, CATEGORIES + 1))
                results.append(
                    detection(
                        rng,
                        image,
                        label,
                        center + rng.normal(0, 0.06, 2) * side,
                        side * np.exp(rng.normal(0, 0.1, 2)),
                        0.4,
                    )
                )

        for _ in range(rng.poisson(6)):
            center = rng.uniform([0, 0], [SIZE[1], SIZE[0]])
            side = 2 ** rng.uniform(3.5, 8, 2)
            results.append(
                detection(rng, image, int(rng.integers(1, CATEGORIES + 1)), center, side, 0.05)
            )

    image_entries = [
        {"id": n, "height": SIZE[0], "width": SIZE[1], "file_name": f"{n}.jpg"}
        for n in range(1, images + 1)
    ]
    categories = [{"id": n, "name": f"category {n}"} for n in range(1, CATEGORIES + 1)]
    return {"images": image_entries, "annotations": annotations, "categories": categories}, results


def detection(
    rng: np.random.Generator,
    image: int,
    category: int,
    center: np.ndarray,
    side: np.ndarray,
    floor: float,
) -> dict[str, Any]:
    """A result with a random score between `floor` and 1."""
    rle, box, _ = ellipse(center, side)
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": rle,
        "bbox": box,
        "score": float(floor + (1 - floor) * rng.random()),
    }


def ellipse(center: np.ndarray, side: np.ndarray) -> tuple[dict[str, Any], list[float], int]:
    """RLE, box (xywh) and area of an ellipse."""
    low = np.clip(np.floor(center - side / 2), 0, [SIZE[1], SIZE[0]]).astype(int)
    high = np.clip(np.ceil(center + side / 2), 0, [SIZE[1], SIZE[0]]).astype(int)
    y, x = np.ogrid[low[1] : high[1], low[0] : high[0]]
    crop = ((x + 0.5 - center[0]) / side[0]) ** 2 + ((y + 0.5 - center[1]) / side[1]) ** 2 <= 0.25
    box = [float(v) for v in (*low, *np.maximum(high - low, 1))]
    return encode_crop(crop, int(low[0]), int(low[1]), SIZE), box, int(crop.sum())
