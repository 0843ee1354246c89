"""The mask head's truth where an object has a box and no mask; it may have labeled points too.

Objects with a box, the image's colors  ->  enlarged RoIs and four losses:

    projection  The box fits tightly: each of its columns and rows holds a part of the object.
    outside     Cells outside the box are background.
    fill        Cells inside are object by default, or background if their color is one of it.
    pairwise    Of cells that lie close together and have similar colors, both or neither belong to
                the object. Where the color of the background continues across a side of the box,
                this removes it from the mask.

Differences from the paper, which has the first and the last loss, each with its reason
(docs/decisions/0060-masks-from-boxes.md):
- A RoI is the true box enlarged, its center moved. In a RoI that fits tightly there is no
  background, and a full mask minimizes the losses. `mask.context` enlarges boxes in prediction.
- Without the second loss masks cover the whole RoI; without the third they shrink to lines.
- Neighbors are one and two cells away, not two alone: these have equal parity, and the 2 x 2
  deconvolution sets the cells of each parity freely, up to a checkerboard.
- Colors are stretched to the full range in each RoI, because the contrast of images differs.
- A box that a crop cuts at the left or right is projected to columns alone: what reached its rows
  may have been cut off. What lies outside is background all the same.

Source: Tian et al. 2021, "BoxInst: High-Performance Instance Segmentation with Box Annotations"
(arXiv 2012.02310), sections 3.1 and 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..config import BoxMaskConfig, MaskHeadConfig
from ..ops.boxes import enlarge
from ..ops.device import constant, may_contain, no_autocast
from ..ops.rows import Rows
from ..ops.stateless_random import random_keys
from ..structures import Batch, Truth
from .point_losses import has_mask_truth

RANDOM_STREAM = 3
MOVED = 0.5
"""Largest move of an enlarged box, as a share of the margin that the enlargement gives."""
DISTANCES = (1, 2)
"""Of neighbors, in cells."""
SAMPLES = 3
"""Samples of the image per side of a cell, averaged to its color."""
SAMPLED_COLORS = 64
"""Cells of each RoI that show the colors of the background, at most."""

# From linear sRGB to XYZ, divided by the white point D65 (IEC 61966-2-1).
_TO_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


class BoxTargets(NamedTuple):
    """What the box of an object and the colors of the image say about its mask, for each RoI."""

    covered: Float[Tensor, "K 2 M"]
    """The share of each column and of each row of the RoI that the box covers."""
    spans: Bool[Tensor, "K 2"]
    """Whether the object reaches all columns and all rows of its box (`Truth.spans`)."""
    inside: Bool[Tensor, "K M M"]
    """Cells inside the image."""
    colors: Float[Tensor, "K 3 M M"]
    """CIELAB, after the RoI's colors were stretched to the full range."""
    shared: Bool[Tensor, "K M M"]
    """Cells that lie in the box of another object too."""
    like_background: Bool[Tensor, "K M M"]
    """Cells whose color occurs outside all boxes."""
    instead: Bool[Tensor, "K"]
    """RoIs whose objects have a box and no annotated mask."""
    with_mask: Bool[Tensor, "K"]
    """Those of them that have a mask of the teacher."""


def learns_from_box(truth: Truth) -> Bool[Tensor, "B N"]:
    """Which objects have a box and no annotated mask."""
    return truth.valid & ~truth.ignore & truth.spans.any(dim=2)


def trains_masks(truth: Truth, context: float) -> Bool[Tensor, "B N"]:
    """Which objects train the mask head of a model: by a mask, by points or by a box.

    Args:
        truth: of the batch.
        context: the model's; boxes train masks where it is above 1.
    """
    annotated = has_mask_truth(truth)
    return annotated | learns_from_box(truth) if context > 1 else annotated


def training_rois(
    boxes: Float[Tensor, "K 4"], rows: Rows, batch: Batch, config: MaskHeadConfig
) -> Float[Tensor, "K 4"]:
    """Returns true boxes enlarged by random factors, with moved centers.

    Args:
        boxes: the true box of each RoI.
        rows: of the RoIs in the sample.
        batch: its seeds give the random numbers.
        config: gives the range of the factors.
    """
    slots = rows.valid.shape[1]
    random = rows.gather(random_keys(batch.seeds, 3 * slots, RANDOM_STREAM).unflatten(1, (-1, 3)))
    random = random / 2**31
    low, high = config.from_boxes.enlarge
    factor = low + (high - low) * random[:, :1]
    margin = (factor - 1) / 2
    return enlarge(boxes, factor, MOVED * margin * (2 * random[:, 1:] - 1))


@torch.no_grad()
def box_targets(
    truth: Truth,
    matched: tuple[Tensor, Tensor],
    rois: Float[Tensor, "K 4"],
    batch: Batch,
    size: int,
    config: MaskHeadConfig,
) -> BoxTargets | None:
    """Returns what the boxes of objects without masks say; None where the batch has no such box.

    Args:
        truth: of the batch.
        matched: for each RoI the index of its image and of its object.
        rois: in model-input pixels.
        batch: gives the colors.
        size: M, the side of the RoIs' grids.
        config: says which colors are similar, and whether boxes train masks.
    """
    if (config.context or 1) == 1 or not may_contain(truth.spans):
        return None
    image = matched[0]
    steps = torch.arange(size + 1, device=rois.device) / size
    edges = rois[:, :2, None] + steps * (rois[:, 2:] - rois[:, :2])[..., None]
    boxes = truth.boxes[matched]
    shared = torch.minimum(edges[..., 1:], boxes[:, 2:, None])
    shared = (shared - torch.maximum(edges[..., :-1], boxes[:, :2, None])).clamp(min=0)
    covered = shared / (edges[..., 1:] - edges[..., :-1]).clamp(min=1e-6)

    centers = (edges[..., 1:] + edges[..., :-1]) / 2
    limits = batch.sizes[image].flip(1)[..., None]
    seen = (centers >= 0) & (centers <= limits)
    inside = seen[:, 1, :, None] & seen[:, 0, None, :]
    with no_autocast(rois.device):
        pixels = _pixels_of(batch, image, rois, size)
        colors = lab(stretched(pixels, inside))
        shared = _in_other_boxes(centers, truth, matched)
        own = (covered[:, 1, :, None] > 0) & (covered[:, 0, None, :] > 0)
        like_background = _has_color_of(
            inside & ~own & ~shared, colors, config.from_boxes.background_difference
        )

    instead = learns_from_box(truth)[matched]
    with_mask = instead & truth.has_mask[matched]
    spans = truth.spans[matched]
    return BoxTargets(covered, spans, inside, colors, shared, like_background, instead, with_mask)


def _pixels_of(
    batch: Batch, image: Int64[Tensor, "K"], rois: Float[Tensor, "K 4"], size: int
) -> Float[Tensor, "K 3 M M"]:
    """The mean color of each cell. At its border an image goes on as it ends: what lies beyond
    depends on the padding, and so on the other images of the batch.
    """
    steps = (torch.arange(size * SAMPLES, device=rois.device) + 0.5) / (size * SAMPLES)
    position = rois[:, :2, None] + steps * (rois[:, 2:] - rois[:, :2])[..., None] - 0.5
    last = batch.sizes[image].flip(1)[..., None] - 1
    position = torch.minimum(position.clamp(min=0), last)
    first = position.floor().long()
    share = position - first
    second = torch.minimum(first + 1, last)

    def rows(y: Int64[Tensor, "K n"]) -> Float[Tensor, "K n n 3"]:
        left, right = (
            batch.images[image[:, None, None], :, y[:, :, None], x[:, 0, None]].float()
            for x in (first, second)
        )
        return left + share[:, 0, None, :, None] * (right - left)

    top = rows(first[:, 1])
    colors = top + share[:, 1, :, None, None] * (rows(second[:, 1]) - top)
    return F.avg_pool2d(colors.permute(0, 3, 1, 2), SAMPLES)


def _in_other_boxes(
    centers: Float[Tensor, "K 2 M"], truth: Truth, matched: tuple[Tensor, Tensor]
) -> Bool[Tensor, "K M M"]:
    """Which cells lie in boxes of other objects, or in regions to ignore.

    Args:
        centers: x of the columns and y of the rows of each RoI.
        truth: of the batch.
        matched: for each RoI the index of its image and of its object.
    """
    image, index = matched
    boxes = truth.boxes[image]
    numbers = torch.arange(boxes.shape[1], device=boxes.device)
    others = truth.valid[image] & (numbers != index[:, None])
    low = boxes[..., :2, None]
    high = boxes[..., 2:, None]
    within = (centers[:, None] > low) & (centers[:, None] < high)
    columns = (within[:, :, 0] & others[..., None]).to(boxes.dtype)
    return within[:, :, 1].to(boxes.dtype).transpose(1, 2) @ columns > 0.5


def _has_color_of(
    some: Bool[Tensor, "K M M"], colors: Float[Tensor, "K 3 M M"], difference: float
) -> Bool[Tensor, "K M M"]:
    """Which cells have nearly the color of one of some cells; of these, a few are sampled."""
    size = some.shape[-1]
    # The same sample whatever the RoI shows: multiples of a prime visit all cells, far apart.
    cells = torch.arange(size * size, device=some.device)
    order = cells * 7919 % (size * size)
    chosen = some.flatten(1)[:, order].to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    chosen = order[chosen[:, :SAMPLED_COLORS]]
    colors = colors.flatten(2).transpose(1, 2)
    sampled = colors.gather(1, chosen[..., None].expand(-1, -1, 3))
    exists = some.flatten(1).gather(1, chosen)
    near = (torch.cdist(colors, sampled) < difference) & exists[:, None]
    return near.any(dim=2).view_as(some)


def box_losses(
    logits: Float[Tensor, "K M M"],
    targets: BoxTargets,
    config: BoxMaskConfig,
    progress: float,
    at_masks: Float[Tensor, "K"] | float = 0.0,
) -> Float[Tensor, "K"]:
    """Returns the loss of each RoI whose object has a box and no annotated mask.

    Args:
        logits: of the masks.
        targets: what the boxes say.
        config: the weight of each term, and which colors are similar.
        progress: share of the training that is done (0..1), with which the pairwise loss grows.
        at_masks: losses at the masks of the teacher, where there are any.
    """
    ramp = min(1.0, progress / max(config.ramp, 1e-6))
    return (
        config.projection_weight * projection_losses(logits, targets)
        + config.outside_weight * outside_losses(logits, targets)
        + config.fill_weight * fill_losses(logits, targets, config)
        + ramp * config.pairwise_weight * pairwise_losses(logits, targets, config.color_difference)
        + config.teacher_weight * targets.with_mask * at_masks
    )


def projection_losses(logits: Float[Tensor, "K M M"], targets: BoxTargets) -> Float[Tensor, "K"]:
    """Returns the sum over both axes of 1 - Dice of the projected mask and the projected box."""
    masks = logits.sigmoid() * targets.inside
    projected = torch.stack([masks.amax(dim=1), masks.amax(dim=2)], dim=1)
    # Along an axis that says nothing about the inside of the box, the mask there is its own target.
    unknown = torch.minimum(projected.detach(), targets.covered)
    wanted = torch.where(targets.spans[..., None], targets.covered, unknown)

    shared = (projected * wanted).sum(dim=2)
    total = projected.square().sum(dim=2) + wanted.square().sum(dim=2)
    return (1 - 2 * shared / total.clamp(min=1e-6)).sum(dim=1)


def outside_losses(logits: Float[Tensor, "K M M"], targets: BoxTargets) -> Float[Tensor, "K"]:
    """Returns the binary cross-entropy of the cells outside the box, averaged over them."""
    in_box = targets.covered[:, 1, :, None] * targets.covered[:, 0, None, :]
    weight = targets.inside * (1 - in_box)
    return (weight * F.softplus(logits)).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=1)


def fill_losses(
    logits: Float[Tensor, "K M M"], targets: BoxTargets, config: BoxMaskConfig
) -> Float[Tensor, "K"]:
    """Returns the mean probability that cells inside the box are not what they are by default.

    That is background for those with a color of the background, and object for the others.
    """
    weight = targets.inside * targets.covered[:, 1, :, None] * targets.covered[:, 0, None, :]
    count = weight.sum(dim=(1, 2)).clamp(min=1)
    weight = torch.where(targets.shared, config.overlap_weight * weight, weight)
    wrong = torch.where(targets.like_background, logits, -logits).sigmoid()
    return (weight * wrong).sum(dim=(1, 2)) / count


def pairwise_losses(
    logits: Float[Tensor, "K M M"], targets: BoxTargets, color_difference: float
) -> Float[Tensor, "K"]:
    """Returns -log of the probability that neighbors of similar color have one label, on average.

    Pairs count that have an end in the box and both ends in the image. With s for softplus, the
    probability of equal labels, sigmoid(a) sigmoid(b) + sigmoid(-a) sigmoid(-b), has the negative
    logarithm s(a) + s(b) - s(a + b).
    """
    in_box = (targets.covered[:, 1, :, None] > 0.5) & (targets.covered[:, 0, None, :] > 0.5)
    single = F.softplus(logits)
    total = logits.new_zeros(len(logits))
    count = torch.zeros_like(total)
    for distance in DISTANCES:
        for dy, dx in ((0, distance), (distance, 0), (distance, distance), (distance, -distance)):
            here, there = _neighbors(dy, dx)
            similar = (targets.colors[here] - targets.colors[there]).norm(dim=1) < color_difference
            counts = similar & targets.inside[here] & targets.inside[there]
            counts &= in_box[here] | in_box[there]
            losses = single[here] + single[there] - F.softplus(logits[here] + logits[there])
            total = total + (losses * counts).sum(dim=(1, 2))
            count = count + counts.sum(dim=(1, 2))
    return total / count.clamp(min=1)


def _neighbors(dy: int, dx: int) -> tuple[tuple, tuple]:
    """Slices of the last two dimensions: all cells with a neighbor, and these neighbors."""
    y = slice(None, -dy or None), slice(dy, None)
    if dx < 0:
        x = slice(-dx, None), slice(None, dx)
    else:
        x = slice(None, -dx or None), slice(dx, None)
    return (..., y[0], x[0]), (..., y[1], x[1])


def stretched(
    pixels: Float[Tensor, "K 3 M M"], inside: Bool[Tensor, "K M M"]
) -> Float[Tensor, "K 3 M M"]:
    """Returns colors stretched in each RoI so that its values span 0 to 255."""
    outside = ~inside[:, None]
    low = pixels.masked_fill(outside, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = pixels.masked_fill(outside, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    return ((pixels - low) * (255 / (high - low).clamp(min=1e-3))).nan_to_num().clamp(0, 255)


def lab(rgb: Float[Tensor, "K 3 M M"]) -> Float[Tensor, "K 3 M M"]:
    """Converts sRGB (0..255) to CIELAB, in which distances are about those that people see."""
    rgb = rgb / 255
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = torch.einsum("ij,kjyx->kiyx", constant(_TO_XYZ, rgb.device), linear)
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
