"""The steps that an exported graph holds as single nodes: sorting, NMS, RoIAlign, keypoint peaks.

In eager code they are many tensor operations, or kernels whose result has an unknown size. In an
export they are operators of their own with results of fixed size, which each target translates:
ONNX to its own operators (`export/onnx_operators.py`), a `.pt2` file to tensor operations
(`export/pt2_operators.py`). Called outside an export they compute the definition, slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms
from torchvision.ops import roi_align as torchvision_roi_align

from .boxes import iou


def operator(name: str, schema: str) -> Callable[[Callable[..., Tensor]], Any]:
    """Makes a function an operator that an exported graph holds as one node.

    Args:
        name: in PyTorch's table of operators, `torch.ops.maskrcnn`.
        schema: its arguments and its result. PyTorch could read them from the function, but not
            where the tests wrap it to check shapes.
    """
    return torch.library.custom_op(f"maskrcnn::{name}", mutates_args=(), schema=schema)


@operator("best_first", "(Tensor scores, int count) -> Tensor")
def best_first(scores: Tensor, count: int) -> Tensor:
    """Returns the indices [B, count] of the highest scores [B, N], ties by the lower index."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count].clone()


@best_first.register_fake
def _(scores: Tensor, count: int) -> Tensor:
    return scores.new_empty((scores.shape[0], count), dtype=torch.int64)


@operator(
    "greedy_nms",
    "(Tensor boxes, Tensor scores, Tensor exists, float threshold) -> Tensor",
)
def greedy_nms(boxes: Tensor, scores: Tensor, exists: Tensor, threshold: float) -> Tensor:
    """Returns which boxes [B, G, N] survive greedy NMS within their group.

    Boxes of different groups never suppress one another.

    Args:
        boxes: [B, G, N, 4], xyxy; G groups in each image.
        scores: [B, G, N].
        exists: [B, G, N]; other boxes neither suppress any nor survive.
        threshold: IoU above which the lower-scoring box of a pair is suppressed.
    """
    kept = exists.new_zeros(exists.shape)
    for image in range(scores.shape[0]):
        for group in range(scores.shape[1]):
            own = exists[image, group].nonzero()[:, 0]
            best = nms(boxes[image, group, own], scores[image, group, own], threshold)
            kept[image, group, own[best]] = True
    return kept


@greedy_nms.register_fake
def _(boxes: Tensor, scores: Tensor, exists: Tensor, *_: Any) -> Tensor:
    return exists.new_empty(exists.shape)


@operator(
    "pyramid_roi_align",
    "(Tensor[] levels, Tensor boxes, Tensor image_index, Tensor level_index, int[] "
    "strides, int size, int sampling_ratio, bool aligned) -> Tensor",
)
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
    *_: Any,
) -> Tensor:
    return levels[0].new_empty(boxes.shape[0], levels[0].shape[1], size, size)


@operator(
    "soft_nms",
    "(Tensor boxes, Tensor scores, Tensor groups, float sigma, int keep) -> Tensor",
)
def soft_nms(boxes: Tensor, scores: Tensor, groups: Tensor, sigma: float, keep: int) -> Tensor:
    """Returns what Gaussian Soft-NMS chooses [B, keep, 2]: index, as a float, and new score.

    Args:
        boxes: [B, N, 4], xyxy.
        scores: [B, N]; -1 for boxes that do not exist. N is at least `keep`.
        groups: [B, N]; boxes of different groups do not affect one another.
        sigma: width of the Gaussian.
        keep: number of boxes to choose.

    Source: Bodla et al. 2017, section 3.
    """
    rounds = soft_nms_rounds(boxes, scores, groups, sigma, keep)
    return torch.stack([torch.stack([i.float(), s], dim=-1) for i, s in rounds], dim=1)


@soft_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, sigma: float, keep: int) -> Tensor:
    return scores.new_empty(scores.shape[0], keep, 2)


def soft_nms_rounds(
    boxes: Tensor, scores: Tensor, groups: Tensor, sigma: float, keep: int
) -> list[tuple[Tensor, Tensor]]:
    """Chooses the best box and lowers the scores of its group, `keep` times."""
    rounds = []
    for _ in range(keep):
        score, best = scores.max(dim=1, keepdim=True)
        rounds.append((best[:, 0], score[:, 0]))
        overlap = iou(boxes.gather(1, best[..., None].expand(-1, -1, 4)), boxes)[:, 0]
        overlap = torch.where(groups == groups.gather(1, best), overlap, 0.0)
        scores = (scores * torch.exp(-(overlap**2) / sigma)).scatter(1, best, -1.0)
    return rounds


@operator("bicubic_peaks", "(Tensor heatmaps, Tensor boxes) -> Tensor")
def bicubic_peaks(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """Returns (x, y, score, logit) [K, J, 4] of each heatmap's peak.

    Each map [K, J, S, S] is resized to the whole pixels of its box [K, 4] by bicubic interpolation,
    as `heatmaps.decode_bicubic` documents.
    """
    from .heatmaps import decode_bicubic

    points, logits = decode_bicubic(heatmaps, boxes)
    return torch.cat([points, logits[..., None]], dim=-1)


@bicubic_peaks.register_fake
def _(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    return heatmaps.new_empty(*heatmaps.shape[:2], 4)
