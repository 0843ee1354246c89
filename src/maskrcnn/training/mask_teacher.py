"""Masks of the averaged model (the teacher) for objects that have a box, no mask and no points.

In:  the averaged model, a batch and its truth.
Out: the truth with the teacher's masks of such objects, in addition to their boxes.

The teacher predicts a mask in each true box. It is used where the teacher is confident of it, and
where it reaches the sides of the box: the box is a filter, which the paper's score is not.

Source: Cheng et al. 2023, "BoxTeacher: Exploring High-Quality Pseudo Labels for Weakly Supervised
Instance Segmentation" (arXiv 2210.05174), section 3.2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..model.box_losses import learns_from_box
from ..model.point_losses import has_points
from ..ops.rows import Rows
from ..structures import Batch, Truth

if TYPE_CHECKING:
    from ..model.maskrcnn import MaskRCNN

LEAST_REACHED = 0.9
"""Share of the columns, and of the rows, of a box that a used mask must reach."""


@torch.no_grad()
def with_teacher_masks(teacher: MaskRCNN, batch: Batch, truth: Truth) -> Truth:
    """Adds the teacher's masks of objects with a box alone.

    Args:
        teacher: the averaged model, in evaluation mode.
        batch: the images.
        truth: their annotations.
    """
    mask = teacher.config.mask
    if mask is None or truth.boxes.shape[1] == 0:
        return truth
    rows = Rows.of(learns_from_box(truth) & ~has_points(truth))
    boxes = rows.gather(truth.boxes)
    labels = rows.gather(truth.labels)
    masks = teacher.predict_masks(teacher.pyramid(batch), boxes, labels, rows.image)

    foreground = masks >= mask.threshold
    count = foreground.sum(dim=(1, 2))
    confidence = (masks * foreground).sum(dim=(1, 2)) / count.clamp(min=1)
    used = (count > 0) & (confidence >= mask.from_boxes.teacher_confidence)
    for axis in (0, 1):
        reached = foreground.any(dim=1 + axis).float().mean(dim=1)
        # A crop may have cut off what reached the other sides.
        used &= (reached >= LEAST_REACHED) | ~rows.gather(truth.spans)[:, axis]

    # Resized as masks are pasted (ops/paste_masks.py, "border").
    side = truth.masks.shape[-1]
    fine = F.interpolate(masks[:, None], size=(side, side), mode="bilinear")[:, 0]
    grids = ((fine >= mask.threshold) & used[:, None, None]).to(torch.uint8) * 255
    return replace(
        truth,
        masks=torch.maximum(truth.masks, rows.scatter(grids)),
        has_mask=truth.has_mask | rows.scatter(used),
    )
