"""7. RoIAlign over the pyramid: a small fixed grid of features for each box, whatever its size.

`Pyramid`, boxes [K, 4] and the image of each  ->  [K, C, S, S].

Source: He et al. 2017, section 3, "RoIAlign"; Lin et al. 2017, equation 1, for the level of a box.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..config import RoIConfig
from ..kernels.roi_align_kernels import roi_align
from ..ops import boxes as box_ops
from ..ops.pyramid import Pyramid

# A box of this size, that of ImageNet's images, is read from this level (Lin et al. 2017, eq. 1).
CANONICAL_SIZE = 224
CANONICAL_LEVEL = 4


class RoIPooler(nn.Module):
    """Reads each RoI from the level, among those with the given strides, that fits its size."""

    def __init__(self, strides: tuple[int, ...], config: RoIConfig) -> None:
        super().__init__()
        self.strides = strides
        self.config = config
        self.use_torchvision_kernel = False
        """Set by `optimize.reference`: use torchvision's kernel on every device."""

    def forward(
        self, pyramid: Pyramid, boxes: Float[Tensor, "K 4"], image_index: Int64[Tensor, "K"]
    ) -> Float[Tensor, "K C S S"]:
        boxes = boxes.detach().float()
        return roi_align(
            pyramid,
            boxes,
            image_index,
            self.level(boxes),
            self.strides,
            self.config,
            exact=self.use_torchvision_kernel,
        )

    def level(self, boxes: Float[Tensor, "K 4"]) -> Int64[Tensor, "K"]:
        """Returns the index of the level for each box: twice the size, next level.

        Source: Lin et al. 2017, equation 1. The tie-breaking epsilon is Detectron2's or
        torchvision's.
        """
        if len(self.strides) == 1:
            return torch.zeros(boxes.shape[0], dtype=torch.int64, device=boxes.device)

        ratio = box_ops.area(boxes).clamp(min=0).sqrt() / CANONICAL_SIZE
        if self.config.level_epsilon == "ratio":
            log = torch.log2(ratio + 1e-8)
        else:
            log = torch.log2(ratio) + 1e-6

        finest = self.strides[0].bit_length() - 1
        level = torch.floor(CANONICAL_LEVEL + log).clamp(finest, finest + len(self.strides) - 1)
        return (level - finest).long()
