"""RoIAlign over a feature pyramid, by a weighted sum of table rows or by torchvision's kernel.

In:  `Pyramid`, boxes [K, 4] with the image and the level of each.
Out: [K, C, S, S].

Both implementations compute the same. `bag_of_pixels` treats each bin as a weighted bag of pixels:
a weighted sum of a few rows of the pyramid's table, one call for all RoIs of all images and levels.
Predictions on an NVIDIA GPU add up by a kernel of their own (`triton_roi_align.py`).
torchvision's kernel takes over as the reference, and on an asynchronous device if the number of
samples depends on the size of the RoI, because there it would have to be known on the host.

Source: He et al. 2017, section 3, "RoIAlign".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from ..config import RoIConfig
from ..ops import device as devices
from ..ops import graph_operators
from ..ops.pyramid import Pyramid
from . import nvidia

# Elements of the patches that the backward pass holds at once: 32 MB.
PATCH_VALUES = 8_000_000


def roi_align(
    pyramid: Pyramid,
    boxes: Float[Tensor, "K 4"],
    image_index: Int64[Tensor, "K"],
    level_index: Int64[Tensor, "K"],
    strides: tuple[int, ...],
    config: RoIConfig,
    *,
    exact: bool = False,
) -> Float[Tensor, "K C S S"]:
    """Returns the features of each box on an S x S grid.

    Args:
        pyramid: the features.
        boxes: xyxy, model-input pixels.
        image_index: the image of each box.
        level_index: the level of each box, an index into `strides`.
        strides: of the levels, in pixels.
        config: size of the grid, samples per bin, alignment.
        exact: use torchvision's kernel in any case.
    """
    if torch.compiler.is_exporting():
        return graph_operators.pyramid_roi_align(
            pyramid.levels[: len(strides)],
            boxes,
            image_index,
            level_index,
            list(strides),
            config.size,
            config.sampling_ratio,
            config.aligned,
        )

    adaptive = not config.sampling_ratio
    if exact or (adaptive and devices.is_async(boxes.device)):
        levels = pyramid.levels[: len(strides)]
        return _by_torchvision(levels, boxes, image_index, level_index, strides, config)
    return bag_of_pixels(pyramid, boxes, image_index, level_index, strides, config)


def _by_torchvision(
    levels: list[Float[Tensor, "B C _ _"]],
    boxes: Float[Tensor, "K 4"],
    image_index: Int64[Tensor, "K"],
    level_index: Int64[Tensor, "K"],
    strides: tuple[int, ...],
    config: RoIConfig,
) -> Float[Tensor, "K C S S"]:
    """RoIAlign by torchvision's kernel, level by level."""
    rois = torch.cat([image_index[:, None].float(), boxes], dim=1)
    size = config.size
    ratio = config.sampling_ratio or -1
    pooled = levels[0].new_zeros(len(boxes), levels[0].shape[1], size, size)

    for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        own = level_index == i
        # The kernel takes boxes of the features' type, which would round them.
        level = level.float()
        if devices.is_async(level.device):
            # All RoIs, those of other levels shrunk to nothing: counting them would be a sync.
            values = torchvision_roi_align(
                level, rois * own[:, None], size, 1 / stride, ratio, config.aligned
            )
            pooled = torch.where(own[:, None, None, None], values.to(pooled.dtype), pooled)
        else:
            index = own.nonzero()[:, 0]
            values = torchvision_roi_align(
                level, rois[index], size, 1 / stride, ratio, config.aligned
            )
            pooled = pooled.index_copy(0, index, values.to(pooled.dtype))
    return pooled


def bag_of_pixels(
    pyramid: Pyramid,
    boxes: Float[Tensor, "K 4"],
    image_index: Int64[Tensor, "K"],
    level_index: Int64[Tensor, "K"],
    strides: tuple[int, ...],
    config: RoIConfig,
) -> Float[Tensor, "K C S S"]:
    """RoIAlign as one weighted sum of feature vectors per bin, over all images and levels at once.

    RoIs that need the same number of samples per bin are processed together. On an asynchronous
    device that number must be fixed by `config.sampling_ratio`.
    """
    size = config.size
    table = pyramid.table
    if len(boxes) == 0:
        return table[:0, :, None, None].expand(-1, -1, size, size)

    # Boxes in cells of their level.
    offset = 0.5 if config.aligned else 0.0
    scaled = boxes / devices.constant(strides, boxes.device)[level_index, None] - offset
    extent = scaled[:, 2:] - scaled[:, :2]
    if not config.aligned:
        extent = extent.clamp(min=1.0)  # as RoIAlign first had it: no RoI is smaller than a cell
    first, height, width = pyramid.maps(level_index)
    first = first + image_index * height * width

    # RoIs grouped by their number of samples per bin and axis.
    groups: list[tuple[slice | Tensor, int]]
    if config.sampling_ratio:
        counts = torch.full_like(boxes[:, :2], config.sampling_ratio, dtype=torch.int64)
        groups = [(slice(None), config.sampling_ratio)]
    else:
        # A RoI without extent reads nothing, as in the kernel.
        counts = (extent / size).ceil().clamp(min=0).long()
        most = counts.amax(dim=1).clamp(min=1)
        groups = [(((most == n).nonzero()[:, 0]), n) for n in most.unique().tolist()]

    add_up = _adder(table)

    def read(group: slice | Tensor, samples: int) -> Float[Tensor, "k bins C"]:
        y = axis_taps(
            scaled[group, 1], extent[group, 1], counts[group, 1], height[group], size, samples
        )
        x = axis_taps(
            scaled[group, 0], extent[group, 0], counts[group, 0], width[group], size, samples
        )
        bins = add_up(table, first[group], y, x, width[group])
        return bins.view(-1, size * size, table.shape[1])

    if len(groups) == 1:
        pooled = read(*groups[0])
    else:
        pooled = table.new_empty(len(boxes), size * size, table.shape[1])
        for group, samples in groups:
            values = read(group, samples)
            pooled = pooled.index_copy_(0, group, values)  # ty: ignore[invalid-argument-type]
    return pooled.view(len(boxes), size, size, -1).permute(0, 3, 1, 2)


def _adder(table: Tensor) -> Callable[..., Tensor]:
    """The way to compute `weighted_sum` for this table, on its device."""
    if not devices.is_async(table.device):
        return _PatchedSum.apply
    if nvidia.can_predict(table) and nvidia.has_triton():
        from . import triton_roi_align

        if triton_roi_align.WEIGHTED_SUM.works(table):
            return triton_roi_align.weighted_sum
    return weighted_sum


def weighted_sum(
    table: Tensor,
    first: Int64[Tensor, "K"],
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    width: Int64[Tensor, "K"],
) -> Float[Tensor, "bins C"]:
    """The bins of RoIs from the cells and weights of both axes, each [K, S, 2n].

    Args:
        table: the pyramid's.
        first: table row at which the map of each RoI begins.
        rows: cells along y, and their weights.
        columns: cells along x, and their weights.
        width: of the map of each RoI.
    """
    y, weight_y = rows
    x, weight_x = columns
    start = first[:, None, None] + y * width[:, None, None]
    index = start[:, :, None, :, None] + x[:, None, :, None, :]  # [K, S, S, 2n, 2n]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    return F.embedding_bag(
        index.flatten(0, 2).flatten(1),
        table,
        per_sample_weights=weight.flatten(0, 2).flatten(1).to(table.dtype),
        mode="sum",
    )


class _PatchedSum(torch.autograd.Function):
    """`weighted_sum` on a CPU: each RoI adds up its own gradient before it reaches the table.

    Neighboring bins read the same cells. Weights are products of one for the row and one for the
    column. So two small matrix products spread the gradient of all bins over the patch of cells
    that the RoI covers, and each cell is added to the table once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        first: Tensor,
        rows: tuple[Tensor, Tensor],
        columns: tuple[Tensor, Tensor],
        width: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(first, *rows, *columns, width)
        ctx.size = table.shape
        return weighted_sum(table, first, rows, columns, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, y, weight_y, x, weight_x, width = ctx.saved_tensors
        count = len(first)
        size = y.shape[1]
        channels = grad.shape[-1]
        table = grad.new_zeros(ctx.size)
        grad = grad.view(count, size, size, channels).float()

        # RoIs with patches of similar size are processed together.
        span = torch.maximum(_span(x), _span(y))
        at_once = PATCH_VALUES // (channels * (int(span.max()) + 1) ** 2)
        for part in span.argsort().split(min(max(at_once, 1), 64)):
            top, spread_y = _spread(y[part], weight_y[part])
            left, spread_x = _spread(x[part], weight_x[part])
            patch = torch.matmul(spread_x[:, None], grad[part])  # [k, S, Q, C]
            patch = torch.matmul(spread_y, patch.flatten(2)).view(-1, channels)  # [k, P, Q C]

            cell_y = top[:, None] + torch.arange(spread_y.shape[1])
            cell_x = left[:, None] + torch.arange(spread_x.shape[1])
            cells = (first[part, None] + cell_y * width[part, None])[:, :, None] + cell_x[:, None]
            # Patches are as large as the largest: what reaches beyond the table has weight 0.
            table.index_add_(0, cells.flatten().clamp(max=len(table) - 1), patch.to(table.dtype))
        return table, None, None, None, None


def _span(cells: Int64[Tensor, "K S T"]) -> Int64[Tensor, "K"]:
    """Distance along an axis between the first and the last cell that each RoI reads."""
    return cells.amax(dim=(1, 2)) - cells.amin(dim=(1, 2))


def _spread(
    cells: Int64[Tensor, "K S T"], weights: Float[Tensor, "K S T"]
) -> tuple[Int64[Tensor, "K"], Float[Tensor, "K P S"]]:
    """Along one axis: the first cell of each RoI, and each bin's weight at it and the next ones."""
    first = cells.amin(dim=(1, 2))
    offset = cells - first[:, None, None]
    spread = weights.new_zeros(*cells.shape[:2], int(offset.max()) + 1)
    spread = spread.scatter_add_(2, offset, weights)
    return first, spread.transpose(1, 2)


def axis_taps(
    start: Float[Tensor, "K"],
    extent: Float[Tensor, "K"],
    count: Int64[Tensor, "K"],
    length: Int64[Tensor, "K"],
    size: int,
    n: int,
) -> tuple[Int64[Tensor, "K S {2*n}"], Float[Tensor, "K S {2*n}"]]:
    """Along one axis: the cells that each bin reads and their weights, two per sample.

    A sample more than a cell outside the map has weight 0; one less far outside reads the border.

    Args:
        start: first edge of each RoI, in cells.
        extent: size of each RoI, in cells.
        count: samples per bin of each RoI; samples beyond have weight 0.
        length: cells of each RoI's map.
        size: bins.
        n: samples per bin to make room for.
    """
    length = length[:, None, None]
    sample = torch.arange(n, device=start.device)
    share = 1 / count.clamp(min=1)[:, None, None]
    bins = torch.arange(size, device=start.device)[None, :, None] + (sample + 0.5) * share
    position = bins * (extent / size)[:, None, None] + start[:, None, None]

    used = (position >= -1) & (position <= length) & (sample < count[:, None, None])
    position = position.clamp(min=0).clamp(max=length - 1)
    low = position.floor().long()
    fraction = position - low
    weight = used * share
    cells = torch.cat([low, (low + 1).clamp(max=length - 1)], dim=-1)
    return cells, torch.cat([(1 - fraction) * weight, fraction * weight], dim=-1)
