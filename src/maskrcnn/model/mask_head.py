"""9. The mask head: which pixels of the box belong to the object?

RoI features [K, C, 14, 14] and the class of each RoI  ->  mask_logits [K, 28, 28] of that class  ->  probabilities, or in training a loss.

A sigmoid for each pixel and each class, no competition between classes: the box head says which class it is.

Source: He et al. 2017, section 3, "Mask Representation", and figure 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from ..config import MaskHeadConfig
from ..ops.device import no_autocast
from ..ops.ranks import average_over_ranks
from .layers import conv_tower, initialize


class MaskHead(nn.Module):
    """3x3 convolutions, deconvolutions that each double the resolution, one logit for each pixel and class."""

    def __init__(self, channels: int, num_classes: int, config: MaskHeadConfig) -> None:
        super().__init__()
        self.convs = conv_tower(channels, config.convs, config.norm)
        widths = (config.convs[-1] if config.convs else channels, *config.upsample)
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 2, 2) for i, o in zip(widths, config.upsample, strict=False)
        )
        self.logits = nn.Conv2d(widths[-1], 1 if config.class_agnostic else num_classes, 1)
        self.config = config
        initialize(self)
        # Small enough for probabilities near one half at first, large enough to pass gradients to the layers below: with the 0.001 that
        # fine-tuning from pretrained trunks uses, training from scratch begins hundreds of steps late.
        nn.init.normal_(self.logits.weight, std=widths[-1] ** -0.5)

    def forward(
        self, x: Float[Tensor, "K C S S"], labels: Int64[Tensor, "K"]
    ) -> Float[Tensor, "K M M"]:
        """Mask logits of each RoI for its own class; the other classes' are never computed."""
        for conv in self.convs:
            x = conv(x, relu=True)
        for up in self.upsample:
            x = _fourfold(x if x.dim() == 4 else _side_by_side(x), up)  # ty: ignore[invalid-argument-type]
        own = torch.zeros_like(labels) if self.config.class_agnostic else labels
        weight = self.logits.weight[own, :, 0, 0].to(x.dtype)
        assert self.logits.bias is not None
        logits = torch.einsum("kc...,kc->k...", x, weight).float()
        return (logits if logits.dim() == 3 else _side_by_side(logits)) + self.logits.bias[
            own, None, None
        ].float()

    def loss(
        self,
        logits: Float[Tensor, "K M M"],
        targets: Float[Tensor, "K M M"],
        counts: Bool[Tensor, "K"],
    ) -> Tensor:
        """Binary cross-entropy of each pixel, averaged over pixels and over the RoIs that count."""
        pixels = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(
            dim=(1, 2)
        )
        return (
            self.config.loss_weight
            * torch.where(counts, pixels, 0.0).sum()
            / average_over_ranks(counts.sum()).clamp(min=1)
        )


def _fourfold(x: Float[Tensor, "K C H W"], up: nn.ConvTranspose2d) -> Float[Tensor, "K C2 H W 2 2"]:
    """The ReLU of a deconvolution, the 2x2 results of each place apart.

    Deconvolving 2x2 with stride 2 is a 1x1 convolution to four times the channels, which a CPU computes faster and differentiates several times as
    fast. What follows it, pixel by pixel, needs no copy that puts the results side by side.
    """
    assert up.bias is not None
    weight = up.weight.permute(2, 3, 1, 0).reshape(4 * up.out_channels, -1, 1, 1)
    x = F.relu(F.conv2d(x, weight, up.bias.repeat(4)), inplace=True)
    return x.unflatten(1, (2, 2, up.out_channels)).permute(0, 3, 4, 5, 1, 2)


def _side_by_side(x: Float[Tensor, "*n H W 2 2"]) -> Float[Tensor, "*n H2 W2"]:
    """A map of twice the size, [.., 2H, 2W]."""
    return x.transpose(-3, -2).flatten(-4, -3).flatten(-2)


def mask_targets(
    masks: UInt8[Tensor, "K S S"],
    mask_boxes: Float[Tensor, "K 4"],
    rois: Float[Tensor, "K 4"],
    size: int,
) -> Float[Tensor, "K M M"]:
    """What share of each cell of an M x M grid over a RoI the true mask covers, 0..1: exact area averages of the truth's cells.

    A soft target lets the bilinear pasting cross one half where the polygon runs, which a target rounded to 0 or 1 does not.

    Args:
        masks: coverage 0..255 over a grid on the object's own box.
        mask_boxes: those boxes.
        rois: the RoIs, in the same pixels.
        size: M.
    """
    grid = masks.shape[-1]
    rows = _overlap(mask_boxes[:, 1], mask_boxes[:, 3], rois[:, 1], rois[:, 3], grid, size)
    columns = _overlap(mask_boxes[:, 0], mask_boxes[:, 2], rois[:, 0], rois[:, 2], grid, size)
    with no_autocast(rois.device):
        return (rows @ (masks.float() / 255) @ columns.transpose(1, 2)).clamp(0, 1)


def _overlap(
    low: Tensor, high: Tensor, roi_low: Tensor, roi_high: Tensor, grid: int, size: int
) -> Float[Tensor, "K size grid"]:
    """Along one axis: the share of each of `size` RoI cells that each of `grid` mask cells covers."""
    scale = (grid / (high - low).clamp(min=1e-6))[:, None]
    edges = torch.arange(size + 1, device=low.device) / size
    edges = (
        roi_low[:, None] + edges * (roi_high - roi_low).clamp(min=1e-6)[:, None] - low[:, None]
    ) * scale
    cells = torch.arange(grid, device=low.device)
    shared = torch.minimum(edges[:, 1:, None], cells + 1) - torch.maximum(
        edges[:, :-1, None], cells
    )
    return shared.clamp_(min=0) / (edges[:, 1:] - edges[:, :-1])[..., None]
