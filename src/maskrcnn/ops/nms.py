"""Non-maximum suppression on padded batches. The loop over the pictures is here and nowhere else.

In: boxes [B, N, 4], scores [B, N], a group for each box (boxes of different groups never suppress one another), a mask of the valid ones.
Out: the indices of the kept boxes, best first, padded to `keep` per picture, and which of them are valid.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from .boxes import iou


def select(
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B N"],
    groups: Int64[Tensor, "B N"],
    valid: Bool[Tensor, "B N"],
    threshold: float,
    keep: int,
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Greedy NMS within each group; the `keep` best survivors of each picture."""
    index = torch.zeros(len(boxes), keep, dtype=torch.int64, device=boxes.device)
    kept = torch.zeros_like(index, dtype=torch.bool)
    for b in range(len(boxes)):
        candidates = valid[b].nonzero()[:, 0]
        best = candidates[batched_nms(boxes[b, candidates], scores[b, candidates], groups[b, candidates], threshold)[:keep]]
        index[b, : len(best)] = best
        kept[b, : len(best)] = True
    return index, kept


def select_soft(
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B N"],
    groups: Int64[Tensor, "B N"],
    valid: Bool[Tensor, "B N"],
    sigma: float,
    floor: float,
    keep: int,
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"], Float[Tensor, "B K"]]:
    """Gaussian Soft-NMS: a box that overlaps a better one of its group loses score, times exp(-iou^2 / sigma), instead of being removed.

    Returns:
        As `select`, and the new scores; what falls to `floor` or below is not kept.

    Source: Bodla et al. 2017, section 3.
    """
    index = torch.zeros(len(boxes), keep, dtype=torch.int64, device=boxes.device)
    kept = torch.zeros_like(index, dtype=torch.bool)
    new_scores = scores.new_zeros(index.shape)
    for b in range(len(boxes)):
        candidates = valid[b].nonzero()[:, 0]
        box, group, remaining = boxes[b, candidates], groups[b, candidates], scores[b, candidates].clone()
        for k in range(min(keep, len(candidates))):
            score, best = remaining.max(dim=0)
            index[b, k], new_scores[b, k], kept[b, k] = candidates[best], score, score > floor
            overlap = torch.where(group == group[best], iou(box[best, None], box)[0], 0.0)
            remaining = remaining * torch.exp(-(overlap**2) / sigma)
            remaining[best] = -1.0
    return index, kept, new_scores
