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
from ..ops.device import is_async
from ..structures import Truth

# A background box that lies in a crowd or ignore region by this share of its own area may show objects that nobody annotated.
IGNORE_COVERAGE = 0.5
# Pairs of an object and a box that are compared at once: few enough to stay in a processor's cache, and to keep crowded images in memory.
PAIRS = 1 << 20
# On a device that runs ahead: few enough for its memory, and few pieces, for each is a dozen calls.
PAIRS_AHEAD = 1 << 26


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
    regions = truth.valid & ~known
    if truth.boxes.shape[1] == 0:
        nothing = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        return Match(nothing.long(), nothing, ~nothing)
    any_regions = is_async(boxes.device) or bool(regions.any())
    best, truth_index, ignored, tops = [], [], [], []
    step = max(1, (PAIRS_AHEAD if is_async(boxes.device) else PAIRS) // known.numel())
    for start in range(0, boxes.shape[1], step):
        part = boxes[:, start : start + step]
        overlap = box_ops.iou(truth.boxes, part)  # [B, N, p]
        if any_regions:
            ignored.append(_ignored(part, overlap, truth, regions, negative_iou))
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
    """Boxes that show something which is neither object nor background: crowds, ignore regions, and objects without a known box."""
    covered = (
        box_ops.intersection(truth.boxes, boxes) >= IGNORE_COVERAGE * box_ops.area(boxes)[:, None]
    )
    near = (overlap >= negative_iou) & ~truth.ignore[..., None]
    return ((covered | near) & regions[..., None]).any(dim=1)


def _best_of_any_object(tops: list[tuple[Tensor, Tensor]]) -> Bool[Tensor, "B P"]:
    """The boxes that no other box overlaps some object more than, ties included.

    Args:
        tops: of each part of the boxes, every object's largest overlap [B, N] and which boxes have it [B, N, p].
    """
    highest = torch.stack([value for value, _ in tops]).amax(dim=0)
    return torch.cat(
        [(has_it & (value == highest)[..., None]).any(dim=1) for value, has_it in tops], dim=1
    )


def balanced_sample(
    positive: Bool[Tensor, "B P"],
    negative: Bool[Tensor, "B P"],
    keys: Int64[Tensor, "B P"],
    samples: int,
    positive_fraction: float,
) -> tuple[Int64[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """At most `samples` boxes an image, at most `positive_fraction` of them positive, the rest negative; positives come first.

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
    return torch.cat([positive_index, negative_index], dim=1), torch.cat(
        [positive_valid, negative_valid], dim=1
    )


def gather(values: Tensor, index: Int64[Tensor, "B S"]) -> Tensor:
    """`values[b, index[b, s]]`: rows of [B, P, ..] as [B, S, ..]."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]
