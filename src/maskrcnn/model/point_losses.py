"""The mask head's truth where points are labeled instead of masks.

Objects with a box and a few labeled points  ->  a binary cross-entropy at these points alone.

Source: Cheng, Parkhi and Kirillov 2022, "Pointly-Supervised Instance Segmentation" (arXiv
2104.06404), section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..structures import Truth


class PointTargets(NamedTuple):
    """Points that are labeled instead of masks, for each RoI."""

    positions: Float[Tensor, "K P 2"]
    """x, y in units of the RoI: 0..1 inside it."""
    labels: Float[Tensor, "K P"]
    """0 no point, 1 beside the object, 2 on it."""
    instead: Bool[Tensor, "K"]
    """RoIs whose objects have points and no mask."""


def has_mask_truth(truth: Truth) -> Bool[Tensor, "B N"]:
    """Which objects have a mask, or labeled points instead of one."""
    return truth.has_mask | has_points(truth)


def has_points(truth: Truth) -> Bool[Tensor, "B N"]:
    """Which objects have labeled points and no mask."""
    if truth.points is None:
        return torch.zeros_like(truth.has_mask)
    return ~truth.has_mask & (truth.points[..., 2] > 0).any(dim=2)


def point_targets(
    truth: Truth, matched: tuple[Tensor, Tensor], rois: Float[Tensor, "K 4"]
) -> PointTargets | None:
    """Returns the labeled points of each RoI's object; None where the batch has no points.

    Args:
        truth: of the batch.
        matched: for each RoI the index of its image and of its object.
        rois: in model-input pixels.
    """
    if truth.points is None:
        return None
    points = truth.points[matched]
    sides = (rois[:, 2:] - rois[:, :2]).clamp(min=1e-6)
    positions = (points[..., :2] - rois[:, None, :2]) / sides[:, None]
    return PointTargets(positions, points[..., 2], has_points(truth)[matched])


def point_losses(
    logits: Float[Tensor, "K M M"], points: PointTargets
) -> tuple[Float[Tensor, "K"], Bool[Tensor, "K"]]:
    """Returns the mean binary cross-entropy at the points inside each RoI, and which RoIs have any.

    The logits are interpolated bilinearly, as masks are pasted: cell centers at (i + 0.5) / M.
    """
    inside = ((points.positions >= 0) & (points.positions <= 1)).all(dim=2) & (points.labels > 0)
    grid = 2 * points.positions[:, None] - 1
    sampled = F.grid_sample(
        logits[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    targets = (points.labels > 1.5).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(sampled[:, 0, 0], targets, reduction="none")

    count = inside.sum(dim=1)
    return torch.where(inside, losses, 0.0).sum(dim=1) / count.clamp(min=1), count > 0
