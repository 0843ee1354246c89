"""Boxes (x0, y0, x1, y1) in continuous pixels: area, overlap, clipping and regression offsets."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from . import device as devices

# exp of a predicted logarithm is capped so that a 16-px anchor may grow to 1000 px and not to
# infinity (Detectron, torchvision).
MAX_LOG_SCALE = math.log(1000 / 16)
# Pairs of boxes to compare at once: few enough to fit a CPU's cache, and to bound the memory that
# crowded images need.
PAIRS = 1 << 20
# On an asynchronous device: few enough for its memory, in few chunks, because each chunk launches a
# dozen kernels.
PAIRS_ASYNC = 1 << 26


def area(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Width times height; negative sides are not clamped."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Area that each box of `a` shares with each box of `b`."""
    ax0, ay0, ax1, ay1 = a[..., :, None, :].unbind(dim=-1)
    # Each coordinate contiguous in memory: three times as fast.
    bx0, by0, bx1, by1 = b.movedim(-1, 0).contiguous()[..., None, :].unbind(dim=0)
    width = torch.minimum(ax1, bx1).sub_(torch.maximum(ax0, bx0)).clamp_(min=0)
    height = torch.minimum(ay1, by1).sub_(torch.maximum(ay0, by0)).clamp_(min=0)
    return width.mul_(height)


def iou(a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Intersection over union of each box of `a` with each box of `b`; 0 if neither has area."""
    shared = intersection(a, b)
    union = (area(a)[..., :, None] + area(b)[..., None, :]).sub_(shared)
    return shared.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def pairs_at_once(device: torch.device) -> int:
    """Number of box pairs to compare at once on this device."""
    return PAIRS_ASYNC if devices.is_async(device) else PAIRS


def clip(boxes: Float[Tensor, "B *n 4"], sizes: Int64[Tensor, "B 2"]) -> Float[Tensor, "B *n 4"]:
    """Clips boxes to their images, whose (height, width) are `sizes`."""
    limit = sizes.flip(-1).to(boxes.dtype).repeat(1, 2).view(-1, *(1,) * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def encode(
    boxes: Float[Tensor, "*n 4"],
    anchors: Float[Tensor, "*n 4"],
    weights: tuple[float, float, float, float],
) -> Float[Tensor, "*n 4"]:
    """Returns the offsets that turn `anchors` into `boxes`: the targets of box regression.

    Args:
        boxes: xyxy, positive width and height.
        anchors: xyxy, positive width and height.
        weights: factors of (dx, dy, dw, dh) that give the targets about unit variance.

    Source: Girshick et al. 2014, appendix C.
    """
    size = anchors[..., 2:] - anchors[..., :2]
    target = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) * 0.5 / size
    deltas = torch.cat([shift, torch.log(target / size)], dim=-1)
    return deltas * devices.constant(weights, anchors.device, anchors.dtype)


def decode(
    deltas: Float[Tensor, "*n 4"],
    anchors: Float[Tensor, "*#n 4"],
    weights: tuple[float, float, float, float],
) -> Float[Tensor, "*n 4"]:
    """Moves and scales anchors by predicted offsets.

    Args:
        deltas: (dx, dy, dw, dh); dx, dy in anchor sizes, dw, dh as logarithms, each times its
            weight.
        anchors: xyxy, positive width and height; broadcast against `deltas`.
        weights: divisors of (dx, dy, dw, dh), the factors of `encode`.

    Returns:
        xyxy, not clipped to the image.

    Source: Girshick et al. 2014, appendix C. dw, dh are capped at log(1000 / 16).
    """
    deltas = deltas / devices.constant(weights, deltas.device, deltas.dtype)
    size = anchors[..., 2:] - anchors[..., :2]
    center = anchors[..., :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE))
    return torch.cat([center - half, center + half], dim=-1)


def enlarge(
    boxes: Float[Tensor, "*n 4"], factor: Tensor | float, move: Tensor | float = 0.0
) -> Float[Tensor, "*n 4"]:
    """Returns boxes enlarged in both directions.

    Args:
        boxes: xyxy.
        factor: a number, or one per box [*n, 1].
        move: of the center, in sides of the box: a number, or x and y per box [*n, 2].
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    center = (boxes[..., 2:] + boxes[..., :2]) / 2 + move * sides
    return torch.cat([center - factor / 2 * sides, center + factor / 2 * sides], dim=-1)


def inner_grid(grids: Float[Tensor, "*n S S"], factor: float) -> Float[Tensor, "*n S S"]:
    """Samples grids over enlarged boxes on grids over the boxes themselves, bilinearly.

    Args:
        grids: each over a box enlarged by `factor`.
        factor: at least 1.
    """
    size = grids.shape[-1]
    cells = torch.arange(size, device=grids.device)
    position = (cells + 0.5 - size / 2) / factor + size / 2 - 0.5
    weights = (1 - (position[:, None] - cells).abs()).clamp(min=0)
    with devices.no_autocast(grids.device):
        return weights @ grids @ weights.T
