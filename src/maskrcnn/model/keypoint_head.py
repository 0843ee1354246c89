"""10. The keypoint head: where in the box is each keypoint?

RoI features [K, C, 14, 14]  ->  heatmaps [K, J, 56, 56], one map of logits for each keypoint  ->  keypoints [K, j, 3] of the own category, or in
training a loss. J are all categories' keypoints one after the other; a category reads its slice.

Source: He et al. 2017, section 5, "Mask R-CNN for Human Pose Estimation".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..config import KeypointHeadConfig
from ..ops import heatmaps as keypoint_ops
from ..ops.device import constant
from ..ops.ranks import average_over_ranks
from .layers import conv_tower, initialize


class KeypointHead(nn.Module):
    """3x3 convolutions, a deconvolution and a bilinear upsampling by two each."""

    def __init__(
        self, channels: int, slices: tuple[tuple[int, int], ...], config: KeypointHeadConfig
    ) -> None:
        super().__init__()
        self.convs = conv_tower(channels, config.convs, config.norm)
        width = config.convs[-1] if config.convs else channels
        self.heatmaps = nn.ConvTranspose2d(
            width, max(start + count for start, count in slices), 4, 2, padding=1
        )
        self.slices = slices
        self.config = config
        initialize(self)
        nn.init.normal_(
            self.heatmaps.weight, std=(4 * width) ** -0.5
        )  # each output reads 2 x 2 places; as large as mask_head.py says why

    def forward(self, x: Float[Tensor, "K C S S"]) -> Float[Tensor, "K J 4*S 4*S"]:
        """Heat maps of all keypoints of all categories."""
        for conv in self.convs:
            x = conv(x, relu=True)
        return keypoint_ops.upsample2(self.heatmaps(x).float())

    def loss(
        self,
        heatmaps: Float[Tensor, "K J S S"],
        keypoints: Float[Tensor, "K J 3"],
        rois: Float[Tensor, "K 4"],
    ) -> Tensor:
        """Cross-entropy over the cells of each map, averaged over the keypoints that are labeled and inside their RoI."""
        cell, known = keypoint_ops.target_cells(keypoints, rois, heatmaps.shape[-1])
        losses = F.cross_entropy(
            heatmaps.flatten(2).flatten(0, 1), cell.flatten(), reduction="none"
        ).view(cell.shape)
        return (
            self.config.loss_weight
            * torch.where(known, losses, 0.0).sum()
            / average_over_ranks(known.sum()).clamp(min=1)
        )

    def decode(
        self,
        heatmaps: Float[Tensor, "K J S S"],
        boxes: Float[Tensor, "K 4"],
        labels: Int64[Tensor, "K"],
    ) -> tuple[Float[Tensor, "K j 3"], Float[Tensor, "K j"]]:
        """The keypoints (x, y, score) of each box's own category and the logits of their peaks; zeros where its skeleton has fewer than the longest."""
        starts, counts = constant(self.slices, labels.device, torch.int64)[labels].unbind(dim=1)
        keypoint = torch.arange(max(count for _, count in self.slices), device=labels.device)
        channel = (starts[:, None] + keypoint).clamp(max=heatmaps.shape[1] - 1)
        own = heatmaps.gather(1, channel[..., None, None].expand(-1, -1, *heatmaps.shape[2:]))
        decode = (
            keypoint_ops.decode_subpixel
            if self.config.decode == "subpixel"
            else keypoint_ops.decode_bicubic
        )
        points, logits = decode(own, boxes)
        exists = keypoint < counts[:, None]
        return torch.where(exists[..., None], points, 0.0), torch.where(exists, logits, 0.0)
