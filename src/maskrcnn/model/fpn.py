"""3. The neck: P2..P6 from C2..C5 (FPN), or one level alone (C4, DC5).

C2..C5, a list of [B, c, H/s, W/s]  ->  levels, a list of [B, C, H/s, W/s] with s = 4, 8, 16, 32, 64
(the last for the RPN alone).

Source: Lin et al. 2017, "Feature Pyramid Networks", section 3.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..config import NeckConfig
from ..kernels.upsample import upsample
from .layers import ConvNorm


class FPN(nn.Module):
    """Top-down pathway with lateral connections.

    Each level is its trunk feature plus the upsampled coarser level, smoothed by a 3x3 convolution.
    """

    def __init__(self, channels_in: tuple[int, ...], config: NeckConfig) -> None:
        super().__init__()
        used = [channels_in[level - 2] for level in config.levels]
        self.lateral = nn.ModuleList(ConvNorm(c, config.channels, 1, config.norm) for c in used)
        self.output = nn.ModuleList(
            ConvNorm(config.channels, config.channels, 3, config.norm) for _ in used
        )
        self.levels = config.levels
        self.average = config.fuse == "average"
        self.strides = tuple(2**level for level in (*config.levels, config.levels[-1] + 1))
        self.channels = config.channels

        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_uniform_(part.weight, a=1)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, features: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B C _ _"]]:
        levels: list[Tensor] = []
        merged = None
        parts = zip(self.lateral, self.output, self.levels, strict=True)
        for lateral, output, level in reversed([*parts]):
            feature = features[level - 2]
            above = None
            if merged is not None:
                above = upsample(merged, feature.shape[-2:])
            merged = lateral(feature, add=above)
            if self.average and above is not None:
                merged = merged / 2
            levels.insert(0, output(merged))
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]


class SingleLevel(nn.Module):
    """The last trunk feature alone, of stride 16: res4 (C4) or the dilated res5 (DC5)."""

    def __init__(self, channels_in: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = (16,)
        self.channels = channels_in[-1]

    def forward(self, features: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B C _ _"]]:
        return features[-1:]
