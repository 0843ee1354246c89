"""Keypoints and heatmaps: the target cell of a keypoint in a box, and the keypoint a heatmap shows.

Heatmaps are [K, J, S, S] logits over a grid on each of K boxes [K, 4].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from . import device

# Cells on each side of the peak whose probabilities locate it between cells: wide enough for the
# blur of a trained map, narrow enough to exclude a second peak (the other knee).
REFINE_RADIUS = 2
# Elements of the resized maps that bicubic decoding holds at once: 256 MB of float32.
CHUNK_ELEMENTS = 1 << 26


def target_cells(
    keypoints: Float[Tensor, "K J 3"], boxes: Float[Tensor, "K 4"], size: int
) -> tuple[Int64[Tensor, "K J"], Bool[Tensor, "K J"]]:
    """Returns the cell (y * size + x) of each keypoint, and whether it is labeled and in the box.

    Args:
        keypoints: x, y, visibility; in the pixels of the boxes.
        boxes: xyxy.
        size: side of the heatmap in cells.

    Source: He et al. 2017, section 5: a one-hot target over the map.
    """
    scale = size / (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    position = (keypoints[..., :2] - boxes[:, None, :2]) * scale[:, None]
    # A keypoint on the far edge of the box belongs to the last cell.
    on_far_edge = keypoints[..., :2] == boxes[:, None, 2:]
    cell = torch.where(on_far_edge, size - 1, position.floor()).long()
    inside = ((cell >= 0) & (cell < size)).all(dim=-1) & (keypoints[..., 2] > 0)
    return torch.where(inside, cell[..., 1] * size + cell[..., 0], 0), inside


def decode_subpixel(
    heatmaps: Float[Tensor, "K J S S"], boxes: Float[Tensor, "K 4"]
) -> tuple[Float[Tensor, "K J 3"], Float[Tensor, "K J"]]:
    """Locates keypoints at the mean position of the probability around each peak.

    A map trained with one-hot targets is a distribution over cells. Its mean near the peak lies
    between the cells, where the truth does.

    Args:
        heatmaps: logits over a grid on each box.
        boxes: xyxy.

    Returns:
        Keypoints (x, y, probability of the peak), and the logits of the peaks.
    """
    size = heatmaps.shape[-1]
    flat = heatmaps.float().flatten(2)
    logit, cell = flat.max(dim=-1)
    score = torch.exp(logit - flat.logsumexp(dim=-1))

    # The probabilities of the cells around the peak, relative to the peak's.
    offsets = torch.arange(-REFINE_RADIUS, REFINE_RADIUS + 1, device=flat.device)
    x = (cell % size)[..., None] + offsets
    y = cell.div(size, rounding_mode="floor")[..., None] + offsets
    inside = ((y >= 0) & (y < size))[..., :, None] & ((x >= 0) & (x < size))[..., None, :]
    around = y.clamp(0, size - 1)[..., :, None] * size + x.clamp(0, size - 1)[..., None, :]
    around = around.flatten(2)
    weight = torch.exp(flat.gather(2, around) - logit[..., None]).view(inside.shape) * inside

    # Their mean position.
    total = weight.sum(dim=(-2, -1))
    sum_x = (weight.sum(-2) * (x + 0.5)).sum(-1)
    sum_y = (weight.sum(-1) * (y + 0.5)).sum(-1)
    position = torch.stack([sum_x, sum_y], dim=-1) / total[..., None]
    extent = (boxes[:, 2:] - boxes[:, :2])[:, None]
    points = boxes[:, None, :2] + position / size * extent
    return torch.cat([points, score[..., None]], dim=-1), logit


def decode_bicubic(
    heatmaps: Float[Tensor, "K J S S"], boxes: Float[Tensor, "K 4"]
) -> tuple[Float[Tensor, "K J 3"], Float[Tensor, "K J"]]:
    """Locates keypoints at the peaks of the maps, resized to whole pixels by bicubic interpolation.

    The resize is separable, so many maps of different sizes are resized at once by matrix products,
    padded to the largest of their chunk. One host-device sync on an asynchronous device.

    Args:
        heatmaps: logits over a grid on each box.
        boxes: xyxy.

    Returns:
        Keypoints (x, y, score), and the logits of the peaks.

    Source: Detectron2's heatmaps_to_keypoints; torchvision's heatmaps_to_keypoints gives the same
    positions.
    """
    keypoints = heatmaps.shape[1]
    size = heatmaps.shape[-1]
    heatmaps = heatmaps.float()
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = extent.ceil()  # (width, height) of the resized map
    order = pixels.prod(dim=-1).argsort()
    points = heatmaps.new_zeros(len(boxes), keypoints, 3)
    logits = heatmaps.new_zeros(len(boxes), keypoints)

    (sides,) = device.to_host(pixels[order])
    start = 0
    while start < len(sides):
        # Sorted by area; grow the chunk while its maps, padded to its widest and its highest, fit.
        width, height = sides[start]
        end = start + 1
        while end < len(sides):
            wider = max(width, sides[end][0])
            higher = max(height, sides[end][1])
            if (end - start + 1) * keypoints * wider * higher > CHUNK_ELEMENTS:
                break
            width, height, end = wider, higher, end + 1

        chunk = order[start:end]
        rows = bicubic_weights(pixels[chunk, 1], height, size)
        columns = bicubic_weights(pixels[chunk, 0], width, size)
        resized = rows[:, None] @ heatmaps[chunk] @ columns.transpose(1, 2)[:, None]
        outside_y = torch.arange(height, device=boxes.device) >= pixels[chunk, 1, None]
        outside_x = torch.arange(width, device=boxes.device) >= pixels[chunk, 0, None]
        outside = outside_y[:, :, None] | outside_x[:, None, :]
        resized = resized.masked_fill(outside[:, None], -torch.inf)

        logit, cell = resized.flatten(2).max(dim=-1)
        cell_xy = torch.stack([cell % width, cell.div(width, rounding_mode="floor")], dim=-1) + 0.5
        points[chunk, :, :2] = boxes[chunk, None, :2] + cell_xy * (extent / pixels)[chunk, None]
        points[chunk, :, 2] = torch.exp(logit - heatmaps[chunk].flatten(2).logsumexp(dim=-1))
        logits[chunk] = logit
        start = end
    return points, logits


def bicubic_weights(
    lengths: Float[Tensor, "K"], longest: int, size: int
) -> Float[Tensor, "K longest size"]:
    """Matrices that resize `size` samples to `lengths` samples.

    They interpolate as torch's bicubic does: A = -0.75, edges repeated.
    """
    a = -0.75
    center = (torch.arange(longest, device=lengths.device) + 0.5) * (size / lengths[:, None]) - 0.5
    first = center.floor()
    t = center - first

    taps = []
    for k in range(-1, 3):
        distance = (t - k).abs()
        near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        taps.append(torch.where(distance <= 1, near, far))

    index = first[..., None] + torch.arange(-1, 3, device=lengths.device)
    index = index.long().clamp(0, size - 1)
    weights = torch.zeros(len(lengths), longest, size, device=lengths.device)
    return weights.scatter_add(2, index, torch.stack(taps, dim=-1))


def upsample2(heatmaps: Float[Tensor, "K J S S"]) -> Float[Tensor, "K J 2*S 2*S"]:
    """Doubles the resolution by bilinear interpolation, the last layer of the keypoint head."""
    return F.interpolate(heatmaps, scale_factor=2, mode="bilinear", align_corners=False)
