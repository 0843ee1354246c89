"""6. Who is responsible for which object: IoU matching and balanced sampling, shared by the RPN and the RoI heads.

Boxes [B, P, 4] (anchors or proposals) and Truth  ->  `Match`: a true object for each box, and whether the box counts as object, as background
or not at all  ->  `balanced_sample`: indices [B, S] of the boxes that the loss sees.

Source: Ren et al. 2015, section 3.1.2; Girshick 2015, section 2.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..ops import boxes as box_ops
from ..structures import Truth

# A background box that lies in a crowd or ignore region by this share of its own area may show objects that nobody annotated.
IGNORE_COVERAGE = 0.5


class Match(NamedTuple):
    """For each box the true object that it overlaps most, and what it counts as; a box that is neither is ignored."""

    truth_index: Int64[Tensor, "B P"]
    positive: Bool[Tensor, "B P"]
    negative: Bool[Tensor, "B P"]


def match(
    boxes: Float[Tensor, "B P 4"],
    truth: Truth,
    positive_iou: float,
    negative_iou: float,
    *,
    keep_best: bool,
    boxless: bool,
) -> Match:
    """Matches boxes to objects.

    Args:
        boxes: model-input pixels; may be expanded over the batch.
        truth: the annotated objects.
        positive_iou: a box is an object from here on.
        negative_iou: and background below this; between the two it is ignored.
        keep_best: also the boxes that overlap an object best, however little, are positive (RPN).
        boxless: objects that have keypoints but no box may be matched by their hull (RoI heads); else what overlaps them is ignored (RPN).
    """
    objects = truth.valid & ~truth.ignore
    known = objects if boxless else objects & truth.has_box
    if truth.boxes.shape[1] == 0:
        nothing = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        return Match(nothing.long(), nothing, ~nothing)
    overlap = box_ops.iou(truth.boxes, boxes)  # [B, N, P]
    best, truth_index = torch.where(known[..., None], overlap, -1.0).max(dim=1)
    positive = best >= positive_iou
    if keep_best:
        highest = torch.where(known[..., None], overlap, -1.0).amax(dim=2, keepdim=True)
        positive = positive | ((overlap == highest) & (highest > 0) & known[..., None]).any(dim=1)
    negative = (best < negative_iou) & ~positive & ~_ignored(boxes, overlap, truth, known, negative_iou)
    return Match(truth_index, positive, negative)


def _ignored(boxes: Tensor, overlap: Tensor, truth: Truth, known: Tensor, negative_iou: float) -> Bool[Tensor, "B P"]:
    """Boxes that show something which is neither object nor background: crowds, ignore regions, and objects without a known box."""
    regions = truth.valid & ~known
    if not bool(regions.any()):  # the common case costs no [B, N, P] tensors
        return torch.zeros_like(overlap[:, 0], dtype=torch.bool)
    covered = box_ops.intersection(truth.boxes, boxes) >= IGNORE_COVERAGE * box_ops.area(boxes)[:, None]
    near = (overlap >= negative_iou) & ~truth.ignore[..., None]
    return ((covered | near) & regions[..., None]).any(dim=1)


def balanced_sample(
    positive: Bool[Tensor, "B P"], negative: Bool[Tensor, "B P"], keys: Int64[Tensor, "B P"], samples: int, positive_fraction: float
) -> tuple[Int64[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """At most `samples` boxes a picture, at most `positive_fraction` of them positive, the rest negative; positives come first.

    Args:
        positive: candidates that are objects.
        negative: candidates that are background.
        keys: random integers >= 0; the candidates with the largest are taken.
        samples: boxes wanted; there are fewer where the candidates do not suffice.
        positive_fraction: the largest share of positives.

    Returns:
        Indices into P, and which of them are valid: S is somewhat more than `samples`, for there is room for every mixture.
    """
    available = positive.shape[1]
    most_positive = min(int(samples * positive_fraction), available)
    key, positive_index = torch.where(positive, keys, -1).topk(most_positive, dim=1)
    positive_valid = key >= 0
    wanted = samples - positive_valid.sum(dim=1, keepdim=True)
    key, negative_index = torch.where(negative, keys, -1).topk(min(samples, available), dim=1)
    negative_valid = (key >= 0) & (torch.arange(key.shape[1], device=key.device) < wanted)
    return torch.cat([positive_index, negative_index], dim=1), torch.cat([positive_valid, negative_valid], dim=1)


def gather(values: Tensor, index: Int64[Tensor, "B S"]) -> Tensor:
    """`values[b, index[b, s]]`: rows of [B, P, ..] as [B, S, ..]."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]
