"""10. The keypoint head: where in the box is each keypoint?

RoI features [K, C, 14, 14]  ->  heatmaps [K, J, 56, 56], one map of logits per keypoint  ->
keypoints [K, j, 3] of the box's own category, or in training a loss. J counts the keypoints of all
categories, one category after the other; each category reads its slice.

Source: He et al. 2017, section 5, "Mask R-CNN for Human Pose Estimation".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..config import KeypointHeadConfig
from ..ops import graph_operators
from ..ops import heatmaps as keypoint_ops
from ..ops.device import constant
from ..ops.distributed import mean_count
from .layers import conv_tower, deconvolve, initialize


class KeypointHead(nn.Module):
    """3x3 convolutions, a deconvolution and a bilinear upsampling, each of these by two."""

    def __init__(
        self, channels: int, slices: tuple[tuple[int, int], ...], config: KeypointHeadConfig
    ) -> None:
        super().__init__()
        self.convs = conv_tower(channels, config.convs, config.norm)
        width = config.convs[-1] if config.convs else channels
        num_keypoints = max(start + count for start, count in slices)
        self.heatmaps = nn.ConvTranspose2d(width, num_keypoints, 4, 2, padding=1)
        self.slices = slices
        self.config = config

        initialize(self)
        # Each output reads 2 x 2 cells; mask_head.py explains the magnitude.
        nn.init.normal_(self.heatmaps.weight, std=(4 * width) ** -0.5)

    def forward(self, x: Float[Tensor, "K C S S"]) -> Float[Tensor, "K J 4*S 4*S"]:
        """Returns heatmaps of all keypoints of all categories."""
        for conv in self.convs:
            x = conv(x, relu=True)
        return keypoint_ops.upsample2(deconvolve(x, self.heatmaps).float())

    def loss(
        self,
        heatmaps: Float[Tensor, "K J S S"],
        keypoints: Float[Tensor, "K J 3"],
        rois: Float[Tensor, "K 4"],
    ) -> Tensor:
        """Computes the cross-entropy over the cells of each map.

        Averaged over the keypoints that are labeled and inside their RoI.
        """
        cell, known = keypoint_ops.target_cells(keypoints, rois, heatmaps.shape[-1])
        losses = F.cross_entropy(
            heatmaps.flatten(2).flatten(0, 1), cell.flatten(), reduction="none"
        ).view(cell.shape)
        total = torch.where(known, losses, 0.0).sum()
        return self.config.loss_weight * total / mean_count(known.sum())

    def decode(
        self,
        heatmaps: Float[Tensor, "K J S S"],
        boxes: Float[Tensor, "K 4"],
        labels: Int64[Tensor, "K"],
    ) -> tuple[Float[Tensor, "K j 3"], Float[Tensor, "K j"]]:
        """Locates the keypoints of each box's own category.

        Args:
            heatmaps: of all keypoints of all categories.
            boxes: xyxy, model-input pixels.
            labels: category of each box.

        Returns:
            Keypoints (x, y, score), and the logits of their peaks. Zeros beyond the keypoints of
            categories that have fewer than the longest.
        """
        starts, counts = constant(self.slices, labels.device, torch.int64)[labels].unbind(dim=1)
        keypoint = torch.arange(max(count for _, count in self.slices), device=labels.device)
        channel = (starts[:, None] + keypoint).clamp(max=heatmaps.shape[1] - 1)
        own = heatmaps.gather(1, channel[..., None, None].expand(-1, -1, *heatmaps.shape[2:]))

        if self.config.decode == "bicubic" and torch.compiler.is_exporting():
            peaks = graph_operators.bicubic_peaks(own, boxes)
            points, logits = peaks[..., :3], peaks[..., 3]
        elif self.config.decode == "subpixel":
            points, logits = keypoint_ops.decode_subpixel(own, boxes)
        else:
            points, logits = keypoint_ops.decode_bicubic(own, boxes)

        exists = keypoint < counts[:, None]
        return torch.where(exists[..., None], points, 0.0), torch.where(exists, logits, 0.0)
