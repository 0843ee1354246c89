"""The average precision of a model, also per type of image, and what ellipses would reach.

In: a model and validation images. Out: numbers by name for a line of the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.coco_types import CocoContent, CocoResult
from maskrcnn.evaluation.coco_results import coco_results
from maskrcnn.evaluation.evaluate import evaluate_results
from maskrcnn.evaluation.metric import Task
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.prediction.predictor import Predictor

from .queue import CAP, NUMBERS

FEW = 30  # images, about, on which a model is measured in the middle of a run
BATCH = 4
NAMES: dict[Task, str] = {"segm": "mask", "bbox": "box", "keypoints": "keypoint"}


@dataclass(frozen=True)
class Validation:
    """The images that models are measured on."""

    data: CocoDataset
    types: Mapping[int, str]
    """The type of an image by its id."""
    unused: CocoDataset | None = None
    """Training images that a run did not use, of types with few validation images. Only the numbers
    of their type count them. Their ids differ from those of the validation images."""

    def few(self) -> CocoDataset:
        """Some of the images, spread over the set."""
        step = max(1, len(self.data) // FEW)
        return self.data.subset(range(0, len(self.data), step))

    def quick_numbers(self, model: MaskRCNN, device: str) -> dict[str, float]:
        """AP on few images."""
        data = self.few()
        return numbers(predictions(model, data, device), data.truth(), data)

    def all_numbers(self, model: MaskRCNN, device: str) -> dict[str, Any]:
        """AP on all images, on the few, per type of image, and with ellipses in place of masks."""
        results = predictions(model, self.data, device)
        truth = self.data.truth()
        drawn = with_ellipses(results, truth)

        few = {image["id"] for image in self.few().truth()["images"]}
        values: dict[str, Any] = numbers(results, truth, self.data)
        values["few"] = self._of(few, results, truth)
        values["ellipses"] = _masks_only(numbers(drawn, truth, self.data))

        if self.unused is not None:
            results = [*results, *predictions(model, self.unused, device)]
            truth = joined(truth, self.unused.truth())
            drawn = with_ellipses(results, truth)
        for kind in sorted(set(self.types.values())):
            ids = {i for i, value in self.types.items() if value == kind}
            values[kind] = {
                **self._of(ids, results, truth),
                "ellipses": _masks_only(self._of(ids, drawn, truth)),
                "images": len(ids),
            }
        return values

    def _of(
        self, ids: set[int], results: Sequence[CocoResult], truth: CocoContent
    ) -> dict[str, float]:
        """The numbers on some of the images."""
        part: CocoContent = {
            **truth,
            "images": [image for image in truth["images"] if image["id"] in ids],
            "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
        }
        return numbers([r for r in results if r["image_id"] in ids], part, self.data)


def predictions(model: MaskRCNN, data: CocoDataset, device: str) -> list[CocoResult]:
    """A model's detections as COCO results."""
    was_training = model.training
    model.eval()
    predictor = Predictor(model, device=device)
    results = coco_results(predictor, data, data.truth(), _categories(data), batch_size=BATCH)
    model.train(was_training)
    return results


def numbers(
    results: Sequence[CocoResult], truth: CocoContent, data: CocoDataset
) -> dict[str, float]:
    """AP, AP50 and AP75 of every task that has truth."""
    tasks: list[Task] = [*NAMES]
    if results and not any("segmentation" in result for result in results):
        tasks.remove("segm")  # the model has no mask head
    evaluation = evaluate_results(results, truth, _categories(data), tasks, CAP)
    return {
        f"{NAMES[task]} {number}": round(values[number], 4)
        for task, values in evaluation.tasks.items()
        for number in NUMBERS
    }


def _categories(data: CocoDataset) -> list[Any]:
    return sorted(data.categories, key=lambda category: category.id)


def _masks_only(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.startswith("mask")}


def joined(truth: CocoContent, more: CocoContent) -> CocoContent:
    """The images and annotations of two sets.

    Raises:
        ValueError: an image has the same id in both.
    """
    if shared := {i["id"] for i in truth["images"]} & {i["id"] for i in more["images"]}:
        raise ValueError(f"image ids of both training and validation: {sorted(shared)[:5]}")
    return {
        **truth,
        "images": [*truth["images"], *more["images"]],
        "annotations": [*truth["annotations"], *more["annotations"]],
    }


def with_ellipses(results: Sequence[CocoResult], truth: CocoContent) -> list[CocoResult]:
    """The results with ellipses in place of masks."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    return [with_ellipse(result, sizes[result["image_id"]]) for result in results]


def with_ellipse(result: CocoResult, size: tuple[int, int]) -> CocoResult:
    """The result with an ellipse that fills its box in place of its mask.

    Args:
        result: a result with a box.
        size: (height, width) of the image.
    """
    x, y, width, height = result["bbox"]
    left, top = int(np.floor(x)), int(np.floor(y))
    columns = np.arange(left, int(np.ceil(x + width)) + 1) + 0.5
    rows = np.arange(top, int(np.ceil(y + height)) + 1) + 0.5
    across = (columns - (x + width / 2)) / max(width / 2, 1e-6)
    down = (rows - (y + height / 2)) / max(height / 2, 1e-6)
    ellipse = across[None] ** 2 + down[:, None] ** 2 <= 1
    return {**result, "segmentation": rle.encode_crop(ellipse, left, top, size)}
