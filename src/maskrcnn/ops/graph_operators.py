"""The three steps that an exported graph holds as single nodes: best first, NMS and RoIAlign.

In eager code they are many tensor operations, or kernels whose result has an unknown size. In an
export they are operators of their own with results of fixed size, which each target translates:
ONNX to TopK, NonMaxSuppression and RoiAlign, a `.pt2` file to tensor operations
(`export/onnx_graph.py`, `export/pt2.py`). Called outside an export they compute the definition,
slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms
from torchvision.ops import roi_align as torchvision_roi_align


@torch.library.custom_op("maskrcnn::best_first", mutates_args=())
def best_first(scores: Tensor, count: int) -> Tensor:
    """Returns the indices [B, count] of the highest scores [B, N], ties by the lower index."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count].clone()


@best_first.register_fake
def _(scores: Tensor, count: int) -> Tensor:
    return scores.new_empty((scores.shape[0], count), dtype=torch.int64)


@torch.library.custom_op("maskrcnn::greedy_nms", mutates_args=())
def greedy_nms(
    boxes: Tensor,
    scores: Tensor,
    exists: Tensor,
    groups: Tensor,
    num_groups: int,
    threshold: float,
) -> Tensor:
    """Returns which boxes [B, N] survive greedy NMS within each group of their image.

    Args:
        boxes: [B, N, 4], xyxy.
        scores: [B, N].
        exists: [B, N]; other boxes neither suppress any nor survive.
        groups: [B, N], 0 .. num_groups - 1; boxes of different groups never suppress one another.
        num_groups: number of groups.
        threshold: IoU above which the lower-scoring box of a pair is suppressed.
    """
    kept = torch.zeros_like(exists)
    for image in range(scores.shape[0]):
        for group in range(num_groups):
            own = ((groups[image] == group) & exists[image]).nonzero()[:, 0]
            kept[image, own[nms(boxes[image, own], scores[image, own], threshold)]] = True
    return kept


@greedy_nms.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    exists: Tensor,
    groups: Tensor,
    num_groups: int,
    threshold: float,
) -> Tensor:
    return torch.empty_like(exists)


@torch.library.custom_op("maskrcnn::pyramid_roi_align", mutates_args=())
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
    """Returns the features [K, C, size, size] of each box, each from its own level.

    Args:
        levels: [B, C, H, W], finest first.
        boxes: [K, 4], xyxy, model-input pixels.
        image_index: [K].
        level_index: [K], into `levels`.
        strides: of the levels, in pixels.
        size: bins per axis.
        sampling_ratio: samples per bin and axis; 0 for as many as the bin has cells.
        aligned: whether coordinates are shifted by half a cell.
    """
    pooled = levels[0].new_zeros(boxes.shape[0], levels[0].shape[1], size, size)
    rois = torch.cat([image_index[:, None].to(boxes.dtype), boxes], dim=1)
    for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        own = (level_index == i).nonzero()[:, 0]
        pooled[own] = torchvision_roi_align(
            level, rois[own], size, 1 / stride, sampling_ratio or -1, aligned
        )
    return pooled


@pyramid_roi_align.register_fake
def _(
    levels: list[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    strides: list[int],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return levels[0].new_empty(boxes.shape[0], levels[0].shape[1], size, size)
