"""Non-maximum suppression on padded batches.

In:  candidates: boxes [B, N, 4] with scores, groups, and which of them are valid.
Out: indices of the kept boxes, best first, padded to `keep` per image, and which are valid.

There are three implementations of the same definition. On the CPU torchvision's kernel runs image
by image. On an asynchronous device (see ops/device.py) all images are done at once in tensors of
fixed size, without a sync. There, an NVIDIA GPU goes through the boxes by a Triton kernel
(`triton_nms.py`). Without it, a matrix holds which box can suppress which, and the survivors emerge
in rounds. Each round decides at least the boxes whose rivals are all decided. Boxes in real images
need up to 18 rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torchvision.ops import batched_nms

from ..ops import device, graph_operators
from ..ops.boxes import iou
from . import nvidia

ROUNDS = 32  # even, so that boxes still undecided at the end count as kept
# Boxes per image that are compared with one another. More would rarely contain a survivor that is
# among the best.
CANDIDATES = 1024


class Candidates(NamedTuple):
    """The boxes to choose from."""

    boxes: Float[Tensor, "B N 4"]
    scores: Float[Tensor, "B N"]
    groups: Int64[Tensor, "B N"]
    """Boxes of different groups never suppress one another."""
    valid: Bool[Tensor, "B N"]
    """Invalid boxes neither suppress others nor are kept."""
    num_groups: int = 1
    """In an exported graph the groups are equally long and follow from the order of the boxes."""
    in_turns: bool = False
    """There, whether the groups take turns (0, 1, 2, 0, 1, 2, ...) or follow one another."""


class Selection(NamedTuple):
    """The boxes that are kept."""

    index: Int64[Tensor, "B K"]
    valid: Bool[Tensor, "B K"]
    count: int
    """Number of valid boxes in the whole batch."""


def select(candidates: Candidates, threshold: float, keep: int) -> Selection:
    """Greedy NMS within each group: the `keep` best survivors per image.

    One host-device sync on an asynchronous device.

    Args:
        candidates: of all images.
        threshold: IoU above which the lower-scoring box of a pair is suppressed.
        keep: boxes to keep per image.
    """
    if torch.compiler.is_exporting():
        return _select_in_graph(candidates, threshold, keep)
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
    """Greedy NMS within each pyramid level, without a host-device sync.

    A box that is still undecided after all rounds is kept, which adds a proposal.

    Args:
        boxes: xyxy, level after level.
        scores: descending within each level.
        valid: invalid boxes neither suppress others nor are kept.
        sizes: number of boxes per level.
        threshold: IoU above which the lower-scoring box of a pair is suppressed.
        keep: boxes to keep per image.

    Returns:
        Indices of the kept boxes, best first, and which are valid.
    """
    if torch.compiler.is_exporting() or not device.is_async(boxes.device):
        levels = torch.cat([torch.full((size,), level) for level, size in enumerate(sizes)])
        levels = levels.expand(boxes.shape[0], -1)
        candidates = Candidates(boxes, scores, levels, valid, len(sizes))
        if torch.compiler.is_exporting():
            index, kept, _ = _select_in_graph(candidates, threshold, keep)
            return index, kept
        return select_one_by_one(candidates, threshold, keep)

    # All levels padded to the longest.
    exists = _by_level(valid[..., None], sizes)[..., 0]
    if survivors := _triton_kernel(boxes):
        one_group = torch.zeros_like(exists, dtype=torch.int64)
        kept = survivors(_by_level(boxes, sizes), one_group, exists, threshold)
    else:
        rivals = boxes.new_zeros(*exists.shape, max(sizes), dtype=_matrix_dtype(boxes))
        for level, part in enumerate(boxes.split(list(sizes), dim=1)):
            rivals[:, level, : sizes[level], : sizes[level]] = iou(part, part) > threshold
        kept, _ = _survivors(rivals, exists)

    kept = torch.cat([kept[:, level, :size] for level, size in enumerate(sizes)], dim=1)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return _first_kept(order, kept.gather(1, order), keep)


def _by_level(values: Shaped[Tensor, "B N C"], sizes: Sequence[int]) -> Shaped[Tensor, "B L n C"]:
    """Values of each level, padded with zeros to the longest."""
    parts = values.split(list(sizes), dim=1)
    longest = max(sizes)
    return torch.stack([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts], dim=1)


def _triton_kernel(boxes: Tensor) -> Callable[..., Tensor] | None:
    """The kernel that finds the survivors, where one works."""
    if not (nvidia.has_triton() and nvidia.is_plain(boxes)):
        return None
    from . import triton_nms

    return triton_nms.survivors if triton_nms.GREEDY.works(boxes) else None


def _select_in_graph(candidates: Candidates, threshold: float, keep: int) -> Selection:
    """Greedy NMS as nodes of an exported graph; every slot counts as a row."""
    boxes, scores, _, valid, num_groups, in_turns = candidates

    def grouped(values: Tensor) -> Tensor:
        if in_turns:
            return values.unflatten(1, (-1, num_groups)).transpose(1, 2)
        return values.unflatten(1, (num_groups, -1))

    survivors = graph_operators.greedy_nms(
        grouped(boxes), grouped(scores), grouped(valid), threshold
    )
    survivors = (survivors.transpose(1, 2) if in_turns else survivors).flatten(1)
    rank = torch.where(survivors, scores, -torch.inf)
    rank = F.pad(rank, (0, max(0, keep - rank.shape[1])), value=-torch.inf)
    index = graph_operators.best_first(rank, keep)
    kept = rank.gather(1, index) > -torch.inf
    index = torch.where(kept, index, 0)
    return Selection(index, kept, kept.numel())


def select_one_by_one(
    candidates: Candidates, threshold: float, keep: int
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Greedy NMS, image by image; arguments and result as in `select`."""
    boxes, scores, groups, valid, *_ = candidates
    index = torch.zeros(len(boxes), keep, dtype=torch.int64, device=boxes.device)
    kept = torch.zeros_like(index, dtype=torch.bool)
    for b in range(len(boxes)):
        exists = valid[b].nonzero()[:, 0]
        best = batched_nms(boxes[b, exists], scores[b, exists], groups[b, exists], threshold)
        best = exists[best[:keep]]
        index[b, : len(best)] = best
        kept[b, : len(best)] = True
    return index, kept


def select_at_once(
    candidates: Candidates, threshold: float, keep: int
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"], Bool[Tensor, ""]]:
    """Greedy NMS among the best candidates of all images at once, without a host-device sync.

    Args:
        candidates: of all images.
        threshold: IoU above which the lower-scoring box of a pair is suppressed.
        keep: boxes to keep per image.

    Returns:
        The indices, which of them are valid, and whether the result equals that of
        `select_one_by_one`: every box was decided, and no box beyond the compared ones could have
        been kept.
    """
    boxes, scores, groups, valid, *_ = candidates
    most = min(max(CANDIDATES, 4 * keep), boxes.shape[1])
    order = torch.where(valid, scores, -torch.inf).argsort(dim=1, descending=True, stable=True)
    order = order[:, :most]
    box = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    group = groups.gather(1, order)
    exists = valid.gather(1, order)

    if survivors := _triton_kernel(box):
        kept = survivors(box, group, exists, threshold)
        decided = exists.new_ones(())
    else:
        rivals = (iou(box, box) > threshold) & (group[:, :, None] == group[:, None])
        kept, decided = _survivors(rivals.to(_matrix_dtype(boxes)), exists)

    enough = (valid.sum(dim=1) <= most) | (kept.sum(dim=1) >= keep)
    return *_first_kept(order, kept, keep), decided & enough.all()


def _matrix_dtype(boxes: Tensor) -> torch.dtype:
    """Type of 0/1 matrices; their sums only need to be distinguishable from zero."""
    return torch.float32 if boxes.device.type == "cpu" else torch.float16


def _survivors(
    rivals: Float[Tensor, "*b n n"], exists: Bool[Tensor, "*b n"]
) -> tuple[Bool[Tensor, "*b n"], Bool[Tensor, ""]]:
    """Finds the boxes that no better survivor suppresses.

    Args:
        rivals: 1 where two boxes, sorted best first, overlap too much, else 0. Only the part above
            the diagonal counts. Overwritten.
        exists: boxes that do not exist suppress nothing.

    Returns:
        The survivors, and whether all boxes are decided.

    Source: rounds of the greedy independent set, Blelloch et al. 2012, "Greedy Sequential Maximal
    Independent Set and Matching are Parallel on Average", section 3. Few rounds are needed unless
    scores fall steadily along a chain of neighbors.
    """
    rivals = rivals.triu_(1)
    kept = exists
    before = exists
    with device.no_autocast(rivals.device):  # which would copy the matrix in every round
        for _ in range(ROUNDS):
            suppressed = (kept[..., None, :].to(rivals.dtype) @ rivals)[..., 0, :] > 0
            before = kept
            kept = exists & ~suppressed
    return kept, (kept == before).all()


def _first_kept(
    order: Int64[Tensor, "B N"], kept: Bool[Tensor, "B N"], keep: int
) -> tuple[Int64[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The first `keep` kept entries of `order`, and which of them are valid."""
    position = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :keep]
    padding = (0, keep - position.shape[1])
    return F.pad(order.gather(1, position), padding), F.pad(kept.gather(1, position), padding)


def select_soft(
    candidates: Candidates, sigma: float, floor: float, keep: int
) -> tuple[Selection, Float[Tensor, "B K"]]:
    """Gaussian Soft-NMS: lowers the scores of overlapping boxes instead of removing them.

    A box that overlaps a better one of its group has its score multiplied by exp(-iou^2 / sigma).
    Two host-device syncs on an asynchronous device.

    Args:
        candidates: of all images.
        sigma: width of the Gaussian, > 0; smaller suppresses more.
        floor: boxes whose score falls to this or below are not kept.
        keep: boxes to keep per image.

    Returns:
        The selection, and the new scores of the selected boxes.

    Source: Bodla et al. 2017, section 3.
    """
    boxes, scores, groups, valid, *_ = candidates
    if torch.compiler.is_exporting():
        rank = torch.where(valid, scores, -1.0)
        padding = max(0, keep - rank.shape[1])
        rank = F.pad(rank, (0, padding), value=-1.0)
        boxes = F.pad(boxes, (0, 0, 0, padding))
        groups = F.pad(groups, (0, padding))
        chosen = graph_operators.soft_nms(boxes, rank, groups, sigma, keep)
        index = chosen[..., 0].long()
        new_scores = chosen[..., 1]
        kept = new_scores > floor
        return Selection(torch.where(kept, index, 0), kept, kept.numel()), new_scores

    (most,) = device.to_host(valid.sum(dim=1).amax())
    remaining, order = torch.where(valid, scores, -1.0).topk(most, dim=1)
    box = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    group = groups.gather(1, order)
    index = order.new_zeros(len(boxes), keep)
    new_scores = scores.new_zeros(len(boxes), keep)

    for k in range(min(keep, most)):
        score, best = remaining.max(dim=1, keepdim=True)
        index[:, k : k + 1] = order.gather(1, best)
        new_scores[:, k : k + 1] = score
        overlap = iou(box.gather(1, best[..., None].expand(-1, -1, 4)), box)[:, 0]
        overlap = torch.where(group == group.gather(1, best), overlap, 0.0)
        remaining = (remaining * torch.exp(-(overlap**2) / sigma)).scatter(1, best, -1.0)

    kept = new_scores > floor
    return Selection(index, kept, device.to_host(kept.sum())[0]), new_scores
