"""7. RoIAlign over the pyramid: a small fixed grid of features for each box, whatever its size.

`Pyramid`, boxes [K, 4] and the image of each  ->  [K, C, S, S].

Two forms of one definition. A bin is a weighted bag of pixels: a weighted sum of a few rows of the pyramid's table, one call for all RoIs of all
images and levels. As the reference, and on a GPU where the number of samples follows from the size of the RoI, torchvision's kernel does it.

Source: He et al. 2017, section 3, "RoIAlign"; Lin et al. 2017, equation 1, for the level of a box.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.ops import roi_align as torchvision_roi_align

from ..config import RoIConfig
from ..ops.device import constant, is_async
from .fpn import Pyramid

# A box of this size, ImageNet's images, is read from this level (Lin et al. 2017, equation 1).
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4
PATCH_VALUES = 8_000_000  # of the patches that are held at once in the backward pass: 32 MB


class RoIPooler(nn.Module):
    """Reads RoIs from the levels that have the given strides, each RoI from the level of its size."""

    def __init__(self, strides: tuple[int, ...], config: RoIConfig) -> None:
        super().__init__()
        self.strides = strides
        self.config = config
        self.use_torchvision_kernel = False
        """Set by `fuse.reference`: the kernel of the peers, on every device."""

    def forward(
        self, pyramid: Pyramid, boxes: Float[Tensor, "K 4"], image_index: Int64[Tensor, "K"]
    ) -> Float[Tensor, "K C S S"]:
        boxes = boxes.detach().float()
        level_index = self.level(boxes)
        if self.use_torchvision_kernel or (
            is_async(boxes.device) and not self.config.sampling_ratio
        ):
            return self._by_kernel(
                pyramid.levels[: len(self.strides)], boxes, image_index, level_index
            )
        return bag_of_pixels(pyramid, boxes, image_index, level_index, self.strides, self.config)

    def level(self, boxes: Float[Tensor, "K 4"]) -> Int64[Tensor, "K"]:
        """Index into the levels for each box: doubled size, next level.

        Source: Lin et al. 2017, equation 1. The tie-breaking epsilon is the peers'.
        """
        if len(self.strides) == 1:
            return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        ratio = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(
            min=0
        ).sqrt() / CANONICAL_SIZE
        log = (
            torch.log2(ratio + 1e-8)
            if self.config.level_epsilon == "ratio"
            else torch.log2(ratio) + 1e-6
        )
        first = self.strides[0].bit_length() - 1
        return (
            torch.floor(CANONICAL_LEVEL + log).clamp(first, first + len(self.strides) - 1) - first
        ).long()

    def _by_kernel(
        self, levels: list[Tensor], boxes: Tensor, image_index: Tensor, level_index: Tensor
    ) -> Tensor:
        rois = torch.cat([image_index[:, None].float(), boxes], dim=1)
        size, ratio, aligned = (
            self.config.size,
            self.config.sampling_ratio or -1,
            self.config.aligned,
        )
        pooled = levels[0].new_zeros(len(boxes), levels[0].shape[1], size, size)
        for i, (level, stride) in enumerate(zip(levels, self.strides, strict=True)):
            own, level = (
                level_index == i,
                level.float(),
            )  # the kernel takes boxes of the level's type, where they would be rounded
            if is_async(
                level.device
            ):  # RoIs of other levels shrink to nothing: to count them would be to wait
                values = torchvision_roi_align(
                    level, rois * own[:, None], size, 1 / stride, ratio, aligned
                )
                pooled = torch.where(own[:, None, None, None], values.to(pooled.dtype), pooled)
            else:
                chosen = own.nonzero()[:, 0]
                values = torchvision_roi_align(
                    level, rois[chosen], size, 1 / stride, ratio, aligned
                )
                pooled = pooled.index_copy(0, chosen, values.to(pooled.dtype))
        return pooled


def bag_of_pixels(
    pyramid: Pyramid,
    boxes: Float[Tensor, "K 4"],
    image_index: Int64[Tensor, "K"],
    level_index: Int64[Tensor, "K"],
    strides: tuple[int, ...],
    config: RoIConfig,
) -> Float[Tensor, "K C S S"]:
    """RoIAlign as one weighted sum of feature vectors for each bin, over all images and levels at once.

    RoIs that need as many samples a bin go together; on a device that runs ahead their number must be fixed.
    """
    size, table, device = config.size, pyramid.table, boxes.device
    if len(boxes) == 0:
        return table[:0, :, None, None].expand(-1, -1, size, size)
    scaled = boxes / constant(strides, device)[level_index, None] - (0.5 if config.aligned else 0.0)
    extent = scaled[:, 2:] - scaled[:, :2]
    if not config.aligned:
        extent = extent.clamp(min=1.0)  # as RoIAlign first had it: no RoI is smaller than a cell
    first, height, width = pyramid.maps(level_index)
    first = first + image_index * height * width
    groups: list[tuple[slice | Tensor, int]]
    if config.sampling_ratio:
        counts = torch.full_like(boxes[:, :2], config.sampling_ratio, dtype=torch.int64)
        groups = [(slice(None), config.sampling_ratio)]
    else:
        counts = (
            (extent / size).ceil().clamp(min=0).long()
        )  # a RoI without extent reads nothing, as in the kernel
        most = counts.amax(dim=1).clamp(min=1)
        groups = [
            ((most == samples).nonzero()[:, 0], samples) for samples in most.unique().tolist()
        ]

    weighted_sum = _weighted_sum if is_async(device) else _Bag.apply

    def read(group: slice | Tensor, samples: int) -> Float[Tensor, "k bins C"]:
        y = _axis_taps(
            scaled[group, 1], extent[group, 1], counts[group, 1], height[group], size, samples
        )
        x = _axis_taps(
            scaled[group, 0], extent[group, 0], counts[group, 0], width[group], size, samples
        )
        return weighted_sum(table, first[group], y, x, width[group]).view(
            -1, size * size, table.shape[1]
        )

    if len(groups) == 1:
        pooled = read(*groups[0])
    else:
        pooled = table.new_empty(len(boxes), size * size, table.shape[1])
        for group, samples in groups:
            pooled = pooled.index_copy_(0, group, read(group, samples))  # ty: ignore[invalid-argument-type]
    return pooled.view(len(boxes), size, size, -1).permute(0, 3, 1, 2)


def _weighted_sum(
    table: Tensor,
    first: Int64[Tensor, "K"],
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    width: Int64[Tensor, "K"],
) -> Float[Tensor, "bins C"]:
    """The bins of RoIs, whose maps begin at row `first` and are `width` wide, from the cells and weights of both axes [K, S, 2n]."""
    (y, weight_y), (x, weight_x) = rows, columns
    index = (first[:, None, None] + y * width[:, None, None])[:, :, None, :, None] + x[
        :, None, :, None, :
    ]  # [K, S, S, 2n, 2n]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    return F.embedding_bag(
        index.flatten(0, 2).flatten(1),
        table,
        per_sample_weights=weight.flatten(0, 2).flatten(1).to(table.dtype),
        mode="sum",
    )


class _Bag(torch.autograd.Function):
    """`_weighted_sum` on a CPU: the gradient adds up in each RoI before it reaches the table.

    Neighboring bins read the same cells. Weights are products of one for the row and one for the column, so two small matrix products spread the
    gradient of all bins over the patch of cells that the RoI covers, and each cell is added to the table once.
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
        return _weighted_sum(table, first, rows, columns, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, y, weight_y, x, weight_x, width = ctx.saved_tensors
        count, size, channels = len(first), y.shape[1], grad.shape[-1]
        table = grad.new_zeros(ctx.size)
        grad = grad.view(count, size, size, channels).float()
        span = torch.maximum(_span(x), _span(y))
        at_once = PATCH_VALUES // (channels * (int(span.max()) + 1) ** 2)
        for part in span.argsort().split(
            min(max(at_once, 1), 64)
        ):  # patches of about one size go together
            (top, spread_y), (left, spread_x) = (
                _spread(y[part], weight_y[part]),
                _spread(x[part], weight_x[part]),
            )
            patch = torch.matmul(spread_x[:, None], grad[part])  # [k, S, Q, C]
            patch = torch.matmul(spread_y, patch.flatten(2)).view(-1, channels)  # [k, P, Q C]
            cell_y, cell_x = (
                start[:, None] + torch.arange(spread.shape[1])
                for start, spread in ((top, spread_y), (left, spread_x))
            )
            cells = (first[part, None] + cell_y * width[part, None])[:, :, None] + cell_x[:, None]
            # Patches are as large as the largest: what reaches beyond the table has weight 0.
            table.index_add_(0, cells.flatten().clamp(max=len(table) - 1), patch.to(table.dtype))
        return table, None, None, None, None


def _span(cells: Int64[Tensor, "K S T"]) -> Int64[Tensor, "K"]:
    """How many cells along an axis lie between the first and the last that a RoI reads."""
    return cells.amax(dim=(1, 2)) - cells.amin(dim=(1, 2))


def _spread(
    cells: Int64[Tensor, "K S T"], weights: Float[Tensor, "K S T"]
) -> tuple[Int64[Tensor, "K"], Float[Tensor, "K P S"]]:
    """Along one axis: the first cell that each RoI reads, and the weight of each bin at that and the following cells."""
    first = cells.amin(dim=(1, 2))
    place = cells - first[:, None, None]
    spread = weights.new_zeros(*cells.shape[:2], int(place.max()) + 1).scatter_add_(
        2, place, weights
    )
    return first, spread.transpose(1, 2)


def _axis_taps(
    start: Float[Tensor, "K"],
    extent: Float[Tensor, "K"],
    count: Int64[Tensor, "K"],
    length: Int64[Tensor, "K"],
    size: int,
    n: int,
) -> tuple[Int64[Tensor, "K S {2*n}"], Float[Tensor, "K S {2*n}"]]:
    """Along one axis: the cells that each bin reads and their weights, two for each of the bin's samples.

    Samples beyond `count` have weight 0. A sample more than a cell outside the map has weight 0, one less far reads the border.
    """
    length = length[:, None, None]
    sample, share = torch.arange(n, device=start.device), 1 / count.clamp(min=1)[:, None, None]
    place = (torch.arange(size, device=start.device)[None, :, None] + (sample + 0.5) * share) * (
        extent / size
    )[:, None, None] + start[:, None, None]
    used = (place >= -1) & (place <= length) & (sample < count[:, None, None])
    place = place.clamp(min=0).clamp(max=length - 1)
    low = place.floor().long()
    fraction = place - low
    weight = used * share
    cells = torch.cat([low, (low + 1).clamp(max=length - 1)], dim=-1)
    return cells, torch.cat([(1 - fraction) * weight, fraction * weight], dim=-1)
