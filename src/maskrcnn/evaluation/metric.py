"""COCO's average precision and recall of a list of results, computed by hotcoco.

In:  truth, a COCO annotation dict; results, COCO result dicts; a task: bbox, segm or keypoints.
Out: hotcoco's precision [T, R, K, A, M] and recall [T, K, A, M] over IoU thresholds, recall levels,
     categories, areas and detection caps, and the standard numbers as means over them. A number is
     -1 if no object is annotated, as in pycocotools.

An object that lacks the truth for a task (a box-only object in segm, a person without labeled
keypoints in keypoints) is an ignore region for that task, like a crowd. Each task reads its own
field of a result, so a file with boxes, masks and keypoints in one entry gives the numbers of three
separate files: the area of a detected mask is that of the mask, not of its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..annotations.coco_types import CocoAnnotation, CocoContent, CocoResult
from ..config import Category

Task = Literal["bbox", "segm", "keypoints"]
FIELD: dict[Task, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
# COCO's caps on detections per image and category, at which AP is computed; they may be raised.
STANDARD_CAP: dict[Task, int] = {"bbox": 100, "segm": 100, "keypoints": 20}


@dataclass(frozen=True)
class Tables:
    """hotcoco's result for one task; every standard number is a mean over a part of it."""

    precision: Float[np.ndarray, "T R K A M"]
    recall: Float[np.ndarray, "T K A M"]
    areas: tuple[str, ...]
    thresholds: tuple[float, ...]

    def numbers(self, category: int | None = None) -> dict[str, float]:
        """The standard numbers in COCO's order: 12 for boxes and masks, 10 for keypoints.

        Args:
            category: an index into K; by default the numbers are over all categories.
        """
        chosen = slice(None) if category is None else slice(category, category + 1)
        precision = self.precision[:, :, chosen]
        recall = self.recall[:, chosen]

        def mean(
            table: np.ndarray, iou: float | None = None, area: str = "all", cap: int = -1
        ) -> float:
            values = table[..., self.areas.index(area), cap]
            if iou is not None:
                values = values[int(np.argmin(np.abs(np.array(self.thresholds) - iou)))]
            values = values[values > -1]
            return float(values.mean()) if values.size else -1.0

        sizes = [(area[0], area) for area in self.areas if area != "all"]
        result = {
            "AP": mean(precision),
            "AP50": mean(precision, 0.5),
            "AP75": mean(precision, 0.75),
        }
        result |= {f"AP{letter}": mean(precision, area=area) for letter, area in sizes}

        # keypoints have one cap on detections, and recall at two thresholds instead
        if precision.shape[-1] == 3:
            result |= {"AR1": mean(recall, cap=0), "AR10": mean(recall, cap=1), "AR": mean(recall)}
        else:
            result |= {"AR": mean(recall), "AR50": mean(recall, 0.5), "AR75": mean(recall, 0.75)}
        return result | {f"AR{letter}": mean(recall, area=area) for letter, area in sizes}


def tables(
    task: Task,
    truth: CocoContent,
    results: Sequence[CocoResult],
    categories: Sequence[Category],
    cap: int,
) -> Tables:
    """Matches results to truth for one task.

    Args:
        task: which part of the objects is compared.
        truth: COCO annotations with all images, also those without objects.
        results: COCO results; entries without the task's field are ignored.
        categories: those of `truth`, in the order of K. For keypoints, K has only those with
            keypoints.
        cap: detections per image and category at which AP is computed, if above COCO's own (100,
            keypoints 20).
    """
    cap = cap if cap > 100 else min(cap, STANDARD_CAP[task])
    if task != "keypoints":
        return _run(task, truth, results, categories, [1, min(10, cap), cap], ())

    # one run per category, as each has its own sigmas
    parts = [
        _run(task, truth, results, [c], [cap], c.oks_sigmas) for c in categories if c.keypoints
    ]
    precision, recall = (
        np.concatenate([getattr(p, name) for p in parts], axis=-3)
        for name in ("precision", "recall")
    )
    return Tables(precision, recall, parts[0].areas, parts[0].thresholds)


def _run(
    task: Task,
    truth: CocoContent,
    results: Sequence[CocoResult],
    categories: Sequence[Category],
    caps: list[int],
    sigmas: Sequence[float],
) -> Tables:
    from hotcoco import COCO, COCOeval  # 0.1 s

    index = {c.id: k + 1 for k, c in enumerate(categories)}
    # Ids count from 1 here: pycocotools reads an annotation id of 0 as "not matched", some files
    # repeat ids, and ids of images may be text.
    image_ids = sorted((image["id"] for image in truth["images"]), key=lambda i: (str(type(i)), i))
    image_index = {id_: n for n, id_ in enumerate(image_ids, start=1)}
    images = [
        {"id": image_index[image["id"]]}
        | {key: image[key] for key in ("height", "width") if key in image}
        for image in truth["images"]
    ]
    objects = [
        a
        for a in truth["annotations"]
        if a["category_id"] in index and a["image_id"] in image_index
    ]
    annotations = [
        {
            **_for_task(a, task, len(sigmas)),
            "id": n,
            "image_id": image_index[a["image_id"]],
            "category_id": index[a["category_id"]],
        }
        for n, a in enumerate(objects, start=1)
    ]
    numbered = [{"id": k, "name": str(k)} for k in index.values()]

    field = FIELD[task]
    detections = [
        {
            "image_id": image_index[r["image_id"]],
            "category_id": index[r["category_id"]],
            field: part,
            "score": r["score"],
        }
        for r in results
        if r["category_id"] in index and (part := _detected(r, task)) is not None
    ]

    coco = COCO({"images": images, "annotations": annotations, "categories": numbered})
    run = COCOeval(coco, coco.load_res(detections), task)
    run.params.max_dets = caps
    if sigmas:
        run.params.kpt_oks_sigmas = list(sigmas)
    run.evaluate()
    run.accumulate()

    table = run.eval or {}
    return Tables(
        np.asarray(table["precision"]),
        np.asarray(table["recall"]),
        tuple(run.params.area_rng_lbl),
        tuple(run.params.iou_thrs),
    )


def _detected(result: CocoResult, task: Task) -> Any:
    """What a task compares of a result, None if it has no such part; a missing box is that of the
    mask.
    """
    part = result.get(FIELD[task])
    if task == "bbox" and part is None and (mask := result.get("segmentation")):
        return _hull(mask, None)
    return part


def _for_task(annotation: CocoAnnotation, task: Task, num_keypoints: int) -> dict[str, Any]:
    """An annotation with what a task needs, or as an ignore region if it lacks that."""
    segmentation = annotation.get("segmentation") or None
    keypoints = annotation.get("keypoints") or None
    box = annotation.get("bbox") or _hull(segmentation, keypoints)
    crowd = bool(annotation.get("iscrowd")) or bool(annotation.get("ignore"))
    if segmentation is None and (task == "segm" or (task == "bbox" and not annotation.get("bbox"))):
        crowd = True

    result = {
        "image_id": annotation["image_id"],
        "bbox": box,
        "area": _area(annotation, segmentation, box),
        "iscrowd": int(crowd),
    }
    if task == "segm":
        x, y, w, h = box
        result["segmentation"] = segmentation or [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if task == "keypoints":
        result["keypoints"] = keypoints or [0] * (3 * num_keypoints)
        result["num_keypoints"] = annotation.get(
            "num_keypoints", sum(v > 0 for v in result["keypoints"][2::3])
        )
    return result


def _hull(segmentation: Any, keypoints: Sequence[float] | None) -> list[float]:
    """xywh around a mask, or around the labeled keypoints."""
    if isinstance(segmentation, dict):
        from ..annotations.rle import bbox

        x0, y0, x1, y1 = bbox(segmentation)
        return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
    if segmentation:
        points = np.array(list(chain.from_iterable(segmentation)), dtype=float).reshape(-1, 2)
    else:
        triples = np.array(keypoints or [0, 0, 0], dtype=float).reshape(-1, 3)
        points = triples[triples[:, 2] > 0, :2] if (triples[:, 2] > 0).any() else np.zeros((1, 2))
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _area(annotation: CocoAnnotation, segmentation: Any, box: Sequence[float]) -> float:
    """The area in the file, else the mask's, else the box's."""
    if annotation.get("area") is not None:
        return float(annotation["area"])
    if isinstance(segmentation, dict):
        from ..annotations.rle import area

        return float(area(segmentation))
    if segmentation:
        total = 0.0
        for part in segmentation:
            x, y = np.array(part, dtype=float).reshape(-1, 2).T
            total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        return total
    return float(box[2] * box[3])
