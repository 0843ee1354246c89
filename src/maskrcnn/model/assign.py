"""6. Which box is responsible for which object: IoU matching and balanced sampling.

Shared by the RPN and the RoI heads.

Boxes [B, P, 4] (anchors or proposals) and Truth  ->  `Match`: a true object for each box, and
whether the box counts as an object, as background or not at all  ->  `balanced_sample`: indices
[B, S] of the boxes that enter the loss.

Source: Ren et al. 2015, section 3.1.2; Girshick 2015, section 2.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..ops import boxes as box_ops
from ..ops.device import may_contain
from ..structures import Truth

# A background box with at least this share of its area in a crowd or ignore region may show objects
# that nobody annotated.
IGNORE_COVERAGE = 0.5


class Match(NamedTuple):
    """For each box the true object that it overlaps most, and what the box counts as.

    A box that is neither positive nor negative is ignored.
    """

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
        positive_iou: a box is positive if its IoU is at least this.
        negative_iou: a box is negative below this IoU, and ignored between the two.
        keep_best: also make the boxes positive that overlap an object best, however little (RPN).
        boxless: whether objects with keypoints but no box are matched by the hull of their
            keypoints (RoI heads). Otherwise boxes that overlap them are ignored (RPN).
    """
    objects = truth.valid & ~truth.ignore
    known = objects if boxless else objects & truth.has_box
    regions = truth.valid & ~known
    if truth.boxes.shape[1] == 0:
        nothing = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        return Match(nothing.long(), nothing, ~nothing)

    # In chunks of boxes, to bound the memory of the overlaps.
    any_regions = may_contain(regions)
    best, truth_index, ignored, tops = [], [], [], []
    step = max(1, box_ops.pairs_at_once(boxes.device) // known.numel())
    for start in range(0, boxes.shape[1], step):
        chunk = boxes[:, start : start + step]
        overlap = box_ops.iou(truth.boxes, chunk)  # [B, N, p]
        if any_regions:
            ignored.append(_ignored(chunk, overlap, truth, regions, negative_iou))
        overlap = overlap.masked_fill_(~known[..., None], -1.0)
        values, index = overlap.max(dim=1)
        best.append(values)
        truth_index.append(index)
        if keep_best:
            highest = overlap.amax(dim=2)
            tops.append((highest, (overlap == highest[..., None]) & (highest > 0)[..., None]))

    iou = torch.cat(best, dim=1)
    positive = iou >= positive_iou
    if keep_best:
        positive = positive | _best_of_any_object(tops)
    negative = (iou < negative_iou) & ~positive
    if any_regions:
        negative = negative & ~torch.cat(ignored, dim=1)
    return Match(torch.cat(truth_index, dim=1), positive, negative)


def _ignored(
    boxes: Tensor, overlap: Tensor, truth: Truth, regions: Tensor, negative_iou: float
) -> Bool[Tensor, "B p"]:
    """Boxes that show crowds, ignore regions or objects without a known box."""
    shared = box_ops.intersection(truth.boxes, boxes)
    covered = shared >= IGNORE_COVERAGE * box_ops.area(boxes)[:, None]
    near = (overlap >= negative_iou) & ~truth.ignore[..., None]
    return ((covered | near) & regions[..., None]).any(dim=1)


def _best_of_any_object(tops: list[tuple[Tensor, Tensor]]) -> Bool[Tensor, "B P"]:
    """Boxes that overlap some object at least as much as every other box does.

    Args:
        tops: for each chunk of boxes, every object's largest overlap [B, N] and which boxes have it
            [B, N, p].
    """
    highest = torch.stack([value for value, _ in tops]).amax(dim=0)
    best = [(has_it & (value == highest)[..., None]).any(dim=1) for value, has_it in tops]
    return torch.cat(best, dim=1)


def balanced_sample(
    positive: Bool[Tensor, "B P"],
    negative: Bool[Tensor, "B P"],
    keys: Int64[Tensor, "B P"],
    samples: int,
    positive_fraction: float,
) -> tuple[Int64[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """Samples boxes per image, at most `positive_fraction` of them positive, positives first.

    Args:
        positive: candidates that are objects.
        negative: candidates that are background.
        keys: random integers >= 0; the candidates with the largest are sampled.
        samples: boxes to sample per image; fewer if there are not enough candidates.
        positive_fraction: the largest share of positives.

    Returns:
        Indices into P, and which of them are valid. S is somewhat larger than `samples`, to have
        room for every mixture.
    """
    available = positive.shape[1]
    most_positive = min(int(samples * positive_fraction), available)
    key, positive_index = torch.where(positive, keys, -1).topk(most_positive, dim=1)
    positive_valid = key >= 0

    wanted = samples - positive_valid.sum(dim=1, keepdim=True)
    key, negative_index = torch.where(negative, keys, -1).topk(min(samples, available), dim=1)
    negative_valid = (key >= 0) & (torch.arange(key.shape[1], device=key.device) < wanted)

    index = torch.cat([positive_index, negative_index], dim=1)
    return index, torch.cat([positive_valid, negative_valid], dim=1)


def gather(values: Tensor, index: Int64[Tensor, "B S"]) -> Tensor:
    """Returns `values[b, index[b, s]]`: rows of [B, P, ...] as [B, S, ...]."""
    return values[torch.arange(index.shape[0], device=index.device)[:, None], index]
