"""How the operators of `ops/graph_operators.py` are written in PyTorch's own tensor operations.

Each function takes the operator's arguments and returns its result. Whatever has no bound on its
number of steps is a `while_loop`. A `.pt2` file thus needs neither this package nor torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.roi_align_kernels import axis_taps, weighted_sum
from ..ops.heatmaps import bicubic_weights


def plain_forms() -> dict[Any, Callable[..., Tensor]]:
    """Returns the tensor operations that stand for each operator."""
    own = torch.ops.maskrcnn
    return {
        own.best_first.default: best_first,
        own.greedy_nms.default: greedy_nms,
        own.pyramid_roi_align.default: pyramid_roi_align,
        own.soft_nms.default: soft_nms,
        own.bicubic_peaks.default: bicubic_peaks,
    }


def loop(
    going: Callable[..., Tensor],
    step: Callable[..., tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    given: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Repeats a step while a condition holds; both take the state, then what is given.

    The operator itself and not `torch.while_loop`, which traces with Dynamo: that knows no tensors
    whose size depends on values.
    """
    return torch.ops.higher_order.while_loop(going, step, state, given)


def best_first(scores: Tensor, count: int) -> Tensor:
    """A stable sort: of equal scores, the one with the lower index comes first."""
    _, index = scores.sort(dim=1, descending=True, stable=True)
    return index[:, :count].clone()


def greedy_nms(boxes: Tensor, scores: Tensor, exists: Tensor, threshold: float) -> Tensor:
    """Keeps the best remaining box of every group at once, round by round, until none remains."""
    shape = exists.shape
    num_groups = shape[1]
    groups = torch.arange(num_groups, device=boxes.device)[:, None].expand(shape).flatten(1)
    boxes = boxes.flatten(1, 2)
    exists = exists.flatten(1)
    rank = torch.where(exists, scores.flatten(1), -torch.inf)
    _, order = rank.sort(dim=1, descending=True, stable=True)
    count = exists.sum(dim=1).max().clamp(min=1)  # the others come last
    most = count.item()
    torch._check(most <= order.shape[1])
    order = order[:, :most]
    group = groups.gather(1, order)
    remaining = exists.gather(1, order)
    sides = [boxes[..., i].gather(1, order) for i in range(4)]
    area = _area(sides)
    position = torch.arange(most, device=boxes.device).expand(order.shape)
    last = (count - 1).expand(boxes.shape[0], num_groups)
    limit = _largest_float(threshold)

    def any_remains(remaining: Tensor, *_: Tensor) -> Tensor:
        return remaining.any()

    def keep_the_best(
        remaining: Tensor,
        kept: Tensor,
        group: Tensor,
        position: Tensor,
        last: Tensor,
        area: Tensor,
        *sides: Tensor,
    ) -> tuple[Tensor, Tensor]:
        candidate = torch.where(remaining, position, last[:, :1])
        best = last.scatter_reduce(1, group, candidate, "amin").gather(1, group)
        overlap = _overlap(sides, area, best)
        chosen = remaining & (position == best)
        return remaining & ~chosen & ~(overlap > limit), kept | chosen

    nothing = torch.zeros_like(remaining)
    given = (group, position, last, area, *sides)
    _, kept = loop(any_remains, keep_the_best, (remaining, nothing), given)
    return torch.zeros_like(exists).scatter(1, order, kept).view(shape)


def _area(sides: Sequence[Tensor]) -> Tensor:
    """The areas of boxes whose coordinates x0, y0, x1, y1 are [B, N] each."""
    x0, y0, x1, y1 = sides
    return (x1 - x0) * (y1 - y0)


def _overlap(sides: Sequence[Tensor], area: Tensor, best: Tensor) -> Tensor:
    """The IoU of each box with the box at its index in `best`, computed as torchvision does."""
    x0, y0, x1, y1 = sides
    left = torch.maximum(x0, x0.gather(1, best))
    top = torch.maximum(y0, y0.gather(1, best))
    right = torch.minimum(x1, x1.gather(1, best))
    bottom = torch.minimum(y1, y1.gather(1, best))
    shared = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    return shared / (area.gather(1, best) + area - shared)


def _largest_float(threshold: float) -> float:
    """The largest float32 that is no larger: torchvision compares with the double itself."""
    limit = np.float32(threshold)
    if float(limit) > threshold:
        limit = np.nextafter(limit, np.float32(-np.inf))
    return float(limit)


def pyramid_roi_align(
    levels: list[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    strides: list[int],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Weighted sums of table rows, as `bag_of_pixels`; each bin has as many as its box needs."""
    channels = levels[0].shape[1]
    table = torch.cat([x.permute(0, 2, 3, 1).reshape(-1, channels) for x in levels])
    scale = torch.zeros_like(boxes[:, 0])
    height = torch.zeros_like(level_index)
    width = torch.zeros_like(level_index)
    first = torch.zeros_like(level_index)
    start = 0
    for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        own = level_index == i
        rows = level.shape[2]
        columns = level.shape[3]
        scale = torch.where(own, 1 / stride, scale)
        height = torch.where(own, torch.full_like(height, rows), height)
        width = torch.where(own, torch.full_like(width, columns), width)
        first = torch.where(own, image_index * (rows * columns) + start, first)
        start = start + level.shape[0] * rows * columns

    # Boxes in cells of their level, and their number of samples per bin and axis.
    scaled = boxes * scale[:, None] - (0.5 if aligned else 0.0)
    extent = scaled[:, 2:] - scaled[:, :2]
    if not aligned:
        extent = extent.clamp(min=1.0)
    if sampling_ratio:
        counts = torch.full_like(extent, sampling_ratio, dtype=torch.int64)
        most = sampling_ratio
    else:
        counts = (extent / size).ceil().clamp(min=0).long()
        most = cast(int, counts.max().clamp(min=1).item())
    y = axis_taps(scaled[:, 1], extent[:, 1], counts[:, 1], height, size, most)
    x = axis_taps(scaled[:, 0], extent[:, 0], counts[:, 0], width, size, most)
    if sampling_ratio:
        bins = weighted_sum(table, first, y, x, width)
    else:
        bins = _uneven_sum(table, first, y, x, width, counts.clamp(min=1), most)
    return bins.view(boxes.shape[0], size, size, channels).permute(0, 3, 1, 2).contiguous()


def _uneven_sum(
    table: Tensor,
    first: Tensor,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    width: Tensor,
    counts: Tensor,
    most: int,
) -> Tensor:
    """`weighted_sum` where boxes differ in their number of samples, without reading the unused.

    Args:
        table: the pyramid's.
        first: table row at which the map of each box begins.
        rows: cells along y, and their weights.
        columns: cells along x, and their weights.
        width: of the map of each box.
        counts: [K, 2], samples of each box along x and y.
        most: samples for which `rows` and `columns` have room.
    """
    y, weight_y = rows
    x, weight_x = columns
    size = y.shape[1]
    count_x, count_y = counts.unbind(dim=1)

    # A bin reads 2n x 2m cells, of n and m samples: all cells of all bins, one after the other.
    per_bin = (4 * count_x * count_y).repeat_interleave(size * size)
    start = per_bin.cumsum(dim=0) - per_bin
    bin_index = torch.arange(per_bin.shape[0], device=first.device).repeat_interleave(per_bin)
    cell = torch.arange(bin_index.shape[0], device=first.device) - start[bin_index]
    box = bin_index.div(size * size, rounding_mode="floor")
    across = 2 * count_x[box]
    tap_y = cell.div(across, rounding_mode="floor")
    tap_x = cell - tap_y * across

    # The taps of an axis: the lower cells of `most` samples, then the higher ones.
    tap_y = tap_y + torch.where(tap_y >= count_y[box], most - count_y[box], 0)
    tap_x = tap_x + torch.where(tap_x >= count_x[box], most - count_x[box], 0)
    bin_y = bin_index.div(size, rounding_mode="floor")  # box * size + row of the bin
    bin_x = box * size + bin_index - bin_y * size
    tap_y = bin_y * (2 * most) + tap_y
    tap_x = bin_x * (2 * most) + tap_x
    index = first[box] + y.flatten()[tap_y] * width[box] + x.flatten()[tap_x]
    weight = weight_y.flatten()[tap_y] * weight_x.flatten()[tap_x]
    return F.embedding_bag(index, table, start, mode="sum", per_sample_weights=weight)


def soft_nms(boxes: Tensor, scores: Tensor, groups: Tensor, sigma: float, keep: int) -> Tensor:
    """A loop that chooses one box per image and round."""
    sides = [boxes[..., i].contiguous() for i in range(4)]
    slot = torch.arange(keep, device=boxes.device)
    nothing = torch.zeros_like(scores[:, :1]).expand(-1, keep)

    def slots_remain(step: Tensor, *_: Tensor) -> Tensor:
        return step < keep

    def choose(
        step: Tensor,
        remaining: Tensor,
        index: Tensor,
        new_scores: Tensor,
        groups: Tensor,
        slot: Tensor,
        area: Tensor,
        *sides: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        score, best = remaining.max(dim=1, keepdim=True)
        index = torch.where(slot == step, best.float(), index)
        new_scores = torch.where(slot == step, score, new_scores)
        overlap = _overlap(sides, area, best.expand(area.shape)).nan_to_num()  # boxes without area
        overlap = torch.where(groups == groups.gather(1, best), overlap, 0.0)
        remaining = (remaining * torch.exp(-(overlap**2) / sigma)).scatter(1, best, -1.0)
        return step + 1, remaining, index, new_scores

    state = (slot.sum() * 0, scores, nothing.clone(), nothing.clone())
    given = (groups, slot, _area(sides), *sides)
    _, _, index, new_scores = loop(slots_remain, choose, state, given)
    return torch.stack([index, new_scores], dim=-1)


def bicubic_peaks(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """A loop over the boxes, each of whose maps is resized to its own size."""
    size = heatmaps.shape[-1]
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    sides = extent.ceil()

    def boxes_remain(i: Tensor, cells: Tensor, *_: Tensor) -> Tensor:
        return i < cells.shape[0]

    def find_peak(
        i: Tensor, cells: Tensor, logits: Tensor, heatmaps: Tensor, sides: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = i[None]
        side = sides.index_select(0, own)
        width = cast(int, side[0, 0].long().item())
        height = cast(int, side[0, 1].long().item())
        torch._check(width >= 1)
        torch._check(height >= 1)
        rows = bicubic_weights(side[:, 1], height, size)[0]
        columns = bicubic_weights(side[:, 0], width, size)[0]
        maps = heatmaps.index_select(0, own)[0]
        logit, cell = (rows @ maps @ columns.T).flatten(1).max(dim=1)
        cell = torch.stack([cell % width, cell // width], dim=-1)
        return i + 1, cells.index_copy(0, own, cell[None]), logits.index_copy(0, own, logit[None])

    nothing = torch.zeros_like(heatmaps[..., 0, 0])
    cells = torch.zeros_like(heatmaps[..., 0, :2], dtype=torch.int64)
    start = torch.zeros_like(boxes[0, 0], dtype=torch.int64)
    state = (start, cells, nothing)
    _, cells, logits = loop(boxes_remain, find_peak, state, (heatmaps, sides))
    points = boxes[:, None, :2] + (cells + 0.5) * (extent / sides)[:, None]
    score = torch.exp(logits - heatmaps.flatten(2).logsumexp(dim=-1))
    return torch.cat([points, score[..., None], logits[..., None]], dim=-1)
