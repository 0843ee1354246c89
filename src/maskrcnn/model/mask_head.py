"""9. The mask head: which pixels of the box belong to the object?

RoI features [K, C, 14, 14] and the class of each RoI  ->  mask_logits [K, 28, 28] of that class  ->
probabilities, or in training a loss.

A sigmoid for each pixel and each class, without competition between classes: the box head decides
the class.

Source: He et al. 2017, section 3, "Mask Representation", and figure 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from ..config import MaskHeadConfig
from ..kernels import fused_layers
from ..kernels.convolution_geometry import DENSE
from ..ops.device import no_autocast
from ..ops.distributed import mean_count
from .box_losses import BoxTargets, box_losses
from .layers import conv_tower, initialize
from .point_losses import PointTargets, point_losses


class MaskHead(nn.Module):
    """3x3 convolutions, deconvolutions that each double the resolution, and a logit per class."""

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
        # Small enough for initial probabilities near one half, large enough to pass gradients to
        # the layers below. With 0.001, usual for fine-tuning from pretrained trunks, learning from
        # scratch starts hundreds of steps later.
        nn.init.normal_(self.logits.weight, std=widths[-1] ** -0.5)

    def forward(
        self, x: Float[Tensor, "K C S S"], labels: Int64[Tensor, "K"]
    ) -> Float[Tensor, "K M M"]:
        """Returns mask logits of each RoI for its own class; no others are computed."""
        for conv in self.convs:
            x = conv(x, relu=True)
        for up in self.upsample:
            x = x if x.dim() == 4 else _interleave(x)
            x = _upsample_fourfold(x, up)  # ty: ignore[invalid-argument-type]

        own = torch.zeros_like(labels) if self.config.class_agnostic else labels
        assert self.logits.bias is not None
        weight = self.logits.weight[own, :, 0, 0].to(x.dtype)
        bias = self.logits.bias[own, None, None].float()
        logits = _dot(x, weight).float()
        return (logits if logits.dim() == 3 else _interleave(logits)) + bias

    def loss(
        self,
        logits: Float[Tensor, "K M M"],
        targets: Float[Tensor, "K M M"],
        valid: Bool[Tensor, "K"],
        points: PointTargets | None = None,
        boxes: BoxTargets | None = None,
        progress: float = 1.0,
    ) -> Tensor:
        """Computes the binary cross-entropy, averaged over pixels and over the valid RoIs.

        RoIs without a mask have `box_losses`, which `progress`, the share of the training done,
        changes. Where points are labeled, the cross-entropy at these points is added.
        """
        pixels = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        losses = pixels.mean(dim=(1, 2))
        from_box = torch.zeros_like(valid)
        if boxes is not None:
            from_box = boxes.instead
            of_boxes = box_losses(logits, boxes, self.config.from_boxes, progress, losses)
            losses = torch.where(from_box, of_boxes, losses)
        if points is not None:
            at_points, has_points = point_losses(logits, points)
            beside = torch.where(from_box, self.config.from_boxes.beside_points * losses, 0.0)
            losses = torch.where(points.instead, at_points + beside, losses)
            valid = valid & (has_points | from_box | ~points.instead)

        total = torch.where(valid, losses, 0.0).sum()
        return self.config.loss_weight * total / mean_count(valid.sum())


def _upsample_fourfold(
    x: Float[Tensor, "K C H W"], up: nn.ConvTranspose2d
) -> Float[Tensor, "K C2 H W 2 2"]:
    """The ReLU of a deconvolution, with the 2 x 2 outputs of each cell in two extra dimensions.

    A 2 x 2 deconvolution with stride 2 is a 1x1 convolution to four times the channels, which a CPU
    computes faster and differentiates several times as fast. What follows it works pixel by pixel
    and so needs no copy that interleaves the outputs.
    """
    assert up.bias is not None
    weight = up.weight.permute(2, 3, 1, 0).reshape(4 * up.out_channels, -1, 1, 1)
    x = fused_layers.convolution(x, weight, up.bias.repeat(4), DENSE, relu=True)
    return x.unflatten(1, (2, 2, up.out_channels)).permute(0, 3, 4, 5, 1, 2)


def _dot(x: Float[Tensor, "K C *s"], weight: Float[Tensor, "K C"]) -> Float[Tensor, "K *s"]:
    """The product of the features at each position with the weights of their RoI."""
    if not torch.compiler.is_exporting():
        return torch.einsum("kc...,kc->k...", x, weight)

    # A graph has them as the convolution wrote them, [K, 2, 2, C, H, W]. There it is a product of a
    # row and a matrix: the runtimes would copy the features for an einsum.
    fourfold = x.dim() == 6
    x = x.permute(0, 4, 5, 1, 2, 3) if fourfold else x
    sides = x.shape[-2:]
    row = weight.view(-1, *(1,) * (x.dim() - 3), weight.shape[1])
    product = (row @ x.flatten(-2)).squeeze(-2).unflatten(-1, sides)
    return product.permute(0, 3, 4, 1, 2) if fourfold else product


def _interleave(x: Float[Tensor, "*n H W 2 2"]) -> Float[Tensor, "*n H2 W2"]:
    """The 2 x 2 outputs of each cell as a map of twice the size, [..., 2H, 2W]."""
    return x.transpose(-3, -2).flatten(-4, -3).flatten(-2)


def mask_targets(
    masks: UInt8[Tensor, "K S S"],
    mask_boxes: Float[Tensor, "K 4"],
    rois: Float[Tensor, "K 4"],
    size: int,
) -> Float[Tensor, "K M M"]:
    """Returns which share, 0..1, of each cell of an M x M grid over a RoI the true mask covers.

    These are exact area averages of the truth's cells. With a soft target the bilinearly pasted
    mask crosses one half where the polygon runs; with a target rounded to 0 or 1 it does not.

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
    """Along one axis: the share of each of `size` RoI cells that each of `grid` cells covers."""
    # Edges of the RoI's cells, in mask cells.
    scale = (grid / (high - low).clamp(min=1e-6))[:, None]
    steps = torch.arange(size + 1, device=low.device) / size
    steps = steps * (roi_high - roi_low).clamp(min=1e-6)[:, None]
    edges = (roi_low[:, None] + steps - low[:, None]) * scale

    cells = torch.arange(grid, device=low.device)
    end = torch.minimum(edges[:, 1:, None], cells + 1)
    shared = end - torch.maximum(edges[:, :-1, None], cells)
    return shared.clamp_(min=0) / (edges[:, 1:] - edges[:, :-1])[..., None]
