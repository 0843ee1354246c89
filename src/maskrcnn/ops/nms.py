"""Non-maximum suppression on padded batches.

In:  candidates: boxes [B, N, 4] with scores, groups, and which of them are valid.
Out: the indices of the kept boxes, best first, padded to `keep` per image, and which of them are valid.

Two forms of one definition. On a processor torchvision's kernel, image by image: the loop is here and nowhere else. On a device that runs ahead
(ops/device.py) all images at once in tensors of fixed size, so that nothing waits: whom a box suppresses is a matrix, and who survives is found in
rounds, each of which decides at least the boxes whose rivals are all decided. Boxes in real images need up to 18 rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from . import device
from .boxes import iou

ROUNDS = 32  # even: what is then still undecided counts as kept
# Boxes of an image that are compared with one another at once; more would seldom hold a survivor that is among the best.
CANDIDATES = 1024


class Candidates(NamedTuple):
    """The boxes to choose from."""

    boxes: Float[Tensor, "B N 4"]
    scores: Float[Tensor, "B N"]
    groups: Int64[Tensor, "B N"]
    """Boxes of different groups never suppress one another."""
    valid: Bool[Tensor, "B N"]
    """The others neither suppress nor are kept."""


class Selection(NamedTuple):
    """The boxes that are kept."""

    index: Int64[Tensor, "B K"]
    valid: Bool[Tensor, "B K"]
    count: int
    """How many are valid in all images together."""


def select(candidates: Candidates, threshold: float, keep: int) -> Selection:
    """Greedy NMS within each group: the `keep` best survivors of each image. Waits once on a device that runs ahead.

    Args:
        candidates: of all images.
        threshold: of IoU, above which the worse of two boxes goes.
        keep: boxes of an image.
    """
    if device.is_async(candidates.boxes.device):
        index, kept, exact = select_at_once(candidates, threshold, keep)
        (count,) = device.to_host(torch.where(exact, kept.sum(), -1))
        if count >= 0:
            return Selection(index, kept, count)
    index, kept = select_one_by_one(candidates, threshold, keep)
    return Selection(index, kept, int(kept.sum()))


def select_by_level(
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B N"],
    valid: Bool[Tensor, "B N"],
    sizes: Sequence[int],
    threshold: float,
    keep: int,
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The same for groups that stand one after the other, each with its best first; never waits.

    A box whose fate is not decided after all the rounds is kept: one proposal more.

    Args:
        boxes: xyxy.
        scores: falling within each level.
        valid: the others neither suppress nor are kept.
        sizes: number of boxes of each level.
        threshold: of IoU, above which the worse of two boxes goes.
        keep: boxes of an image.
    """
    if not device.is_async(boxes.device):
        levels = torch.cat([torch.full((size,), level) for level, size in enumerate(sizes)])
        return select_one_by_one(
            Candidates(boxes, scores, levels.expand(len(boxes), -1), valid), threshold, keep
        )
    longest = max(sizes)
    exists = torch.stack(
        [F.pad(part, (0, longest - part.shape[1])) for part in valid.split(list(sizes), dim=1)],
        dim=1,
    )
    rivals = torch.zeros(*exists.shape, longest, dtype=_matrix_type(boxes), device=boxes.device)
    for level, part in enumerate(boxes.split(list(sizes), dim=1)):
        rivals[:, level, : sizes[level], : sizes[level]] = iou(part, part) > threshold
    kept, _ = _survivors(rivals, exists)
    kept = torch.cat([kept[:, level, :size] for level, size in enumerate(sizes)], dim=1)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return _first(order, kept.gather(1, order), keep)


def select_one_by_one(
    candidates: Candidates, threshold: float, keep: int
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Greedy NMS, image by image."""
    boxes, scores, groups, valid = candidates
    index = torch.zeros(len(boxes), keep, dtype=torch.int64, device=boxes.device)
    kept = torch.zeros_like(index, dtype=torch.bool)
    for b in range(len(boxes)):
        there = valid[b].nonzero()[:, 0]
        best = there[
            batched_nms(boxes[b, there], scores[b, there], groups[b, there], threshold)[:keep]
        ]
        index[b, : len(best)] = best
        kept[b, : len(best)] = True
    return index, kept


def select_at_once(
    candidates: Candidates, threshold: float, keep: int
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"], Bool[Tensor, ""]]:
    """Greedy NMS among the best candidates of every image, without waiting.

    Returns:
        The indices, which are valid, and whether this is the answer of `select_one_by_one`: every box was decided, and boxes beyond the
        candidates could not have been kept.
    """
    boxes, scores, groups, valid = candidates
    most = min(max(CANDIDATES, 4 * keep), boxes.shape[1])
    order = torch.where(valid, scores, -torch.inf).argsort(dim=1, descending=True, stable=True)[
        :, :most
    ]
    box, group, exists = (
        boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        groups.gather(1, order),
        valid.gather(1, order),
    )
    rivals = (iou(box, box) > threshold) & (group[:, :, None] == group[:, None])
    kept, decided = _survivors(rivals.to(_matrix_type(boxes)), exists)
    enough = (valid.sum(dim=1) <= most) | (kept.sum(dim=1) >= keep)
    return *_first(order, kept, keep), decided & enough.all()


def _matrix_type(boxes: Tensor) -> torch.dtype:
    """Of matrices of zeros and ones; sums of them need only be told from zero."""
    return torch.float32 if boxes.device.type == "cpu" else torch.float16


def _survivors(
    rivals: Float[Tensor, "*b n n"], exists: Bool[Tensor, "*b n"]
) -> tuple[Bool[Tensor, "*b n"], Bool[Tensor, ""]]:
    """Which boxes, best first, no better survivor suppresses, and whether all are decided.

    Args:
        rivals: 1 where two boxes overlap too much, else 0; the part above the diagonal counts.
        exists: the other boxes suppress nothing.

    Source: rounds of the greedy independent set, Blelloch et al. 2012, "Greedy Sequential Maximal Independent Set and Matching are Parallel on
    Average", section 3: few are needed where scores do not fall steadily along a chain of neighbors.
    """
    rivals = rivals.triu_(1)
    kept = before = exists
    with device.no_autocast(rivals.device):  # which would copy the matrix in every round
        for _ in range(ROUNDS):
            suppressed = (kept[..., None, :].to(rivals.dtype) @ rivals)[..., 0, :] > 0
            before, kept = kept, exists & ~suppressed
    return kept, (kept == before).all()


def _first(
    order: Int64[Tensor, "B N"], kept: Bool[Tensor, "B N"], keep: int
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The first `keep` of those in `order` that are kept."""
    place = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :keep]
    padding = (0, keep - place.shape[1])
    return F.pad(order.gather(1, place), padding), F.pad(kept.gather(1, place), padding)


def select_soft(
    candidates: Candidates, sigma: float, floor: float, keep: int
) -> tuple[Selection, Float[Tensor, "B K"]]:
    """Gaussian Soft-NMS: a box that overlaps a better one of its group loses score, times exp(-iou^2 / sigma), instead of being removed.

    Returns:
        As `select`, and the new scores; what falls to `floor` or below is not kept. Waits twice on a device that runs ahead.

    Source: Bodla et al. 2017, section 3.
    """
    boxes, scores, groups, valid = candidates
    (most,) = device.to_host(valid.sum(dim=1).amax())
    remaining, order = torch.where(valid, scores, -1.0).topk(most, dim=1)
    box, group = boxes.gather(1, order[..., None].expand(-1, -1, 4)), groups.gather(1, order)
    index, new_scores = order.new_zeros(len(boxes), keep), scores.new_zeros(len(boxes), keep)
    for k in range(min(keep, most)):
        score, best = remaining.max(dim=1, keepdim=True)
        index[:, k : k + 1], new_scores[:, k : k + 1] = order.gather(1, best), score
        overlap = iou(box.gather(1, best[..., None].expand(-1, -1, 4)), box)[:, 0]
        overlap = torch.where(group == group.gather(1, best), overlap, 0.0)
        remaining = (remaining * torch.exp(-(overlap**2) / sigma)).scatter(1, best, -1.0)
    kept = new_scores > floor
    return Selection(index, kept, device.to_host(kept.sum())[0]), new_scores
