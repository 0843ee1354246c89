"""Annotated objects as `Instances`, so that truth and predictions are drawn by the same code.

In: the annotations of an image. Out: `Instances` with a score of 1 for every object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .annotations.annotation import Annotation, BoxXYXY, mask_bounds
from .augmentation.moved_masks import mask_of
from .config import Category
from .instances import Instances


def truth_instances(
    annotations: Sequence[Annotation],
    categories: tuple[Category, ...],
    size: tuple[int, int],
    grid: int = 112,
) -> Instances:
    """The annotated objects of an image, without those to ignore.

    An object without a box gets the box around its mask, or else around its keypoints. Hidden
    keypoints get a score of 0.5, so that they are drawn like uncertain predictions.

    Args:
        annotations: of one image.
        categories: what the annotations' labels index.
        size: (height, width) of the image.
        grid: cells per side of each mask's grid; more cells give smoother edges.
    """
    objects = [a for a in annotations if not a.ignore]
    boxes = [_box(a) for a in objects]
    num_keypoints = max((len(c.keypoints) for c in categories), default=0)
    keypoints = np.zeros((len(objects), num_keypoints, 3), np.float32)
    grids = np.zeros((len(objects), grid, grid), np.float32)

    for n, (annotation, box) in enumerate(zip(objects, boxes, strict=True)):
        if annotation.keypoints is not None:
            keypoints[n, : len(annotation.keypoints)] = annotation.keypoints * (1, 1, 0.5)
        mask = mask_of(annotation)
        if mask is not None and box[2] > box[0] and box[3] > box[1]:
            grids[n] = mask.coverage(np.eye(3), box, grid) / 255

    has_masks = any(a.polygons or a.rle for a in objects)
    return Instances(
        size=size,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.ones(len(objects)),
        labels=torch.tensor([a.label for a in objects], dtype=torch.int64),
        categories=categories,
        mask_grids=torch.from_numpy(grids) if has_masks else None,
        keypoints=torch.from_numpy(keypoints) if num_keypoints else None,
    )


def _box(annotation: Annotation) -> BoxXYXY:
    box = annotation.box or mask_bounds(annotation)
    if box is None and annotation.keypoints is not None:
        labeled = annotation.keypoints[annotation.keypoints[:, 2] > 0, :2]
        (x0, y0), (x1, y1) = labeled.min(axis=0).tolist(), labeled.max(axis=0).tolist()
        box = (x0, y0, x1, y1)
    return box or (0.0, 0.0, 0.0, 0.0)
