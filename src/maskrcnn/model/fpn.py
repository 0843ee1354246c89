"""3. The neck: P2..P6 from C2..C5 (FPN), or one level alone (C4, DC5).

C2..C5, a list of [B, c, H/s, W/s]  ->  levels, a list of [B, C, H/s, W/s] with s = 4, 8, 16, 32, 64 (the last for the RPN alone)
                                    ->  `Pyramid`: the levels, and all their cells as the rows of one table.

Source: Lin et al. 2017, "Feature Pyramid Networks", section 3.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..config import NeckConfig
from ..ops.device import constant
from .layers import ConvNorm


class FPN(nn.Module):
    """Top-down pathway: each level is its trunk feature plus the upsampled coarser level, smoothed by a 3x3 convolution."""

    def __init__(self, channels_in: tuple[int, ...], config: NeckConfig) -> None:
        super().__init__()
        chosen = [channels_in[level - 2] for level in config.levels]
        self.lateral = nn.ModuleList(ConvNorm(c, config.channels, 1, config.norm) for c in chosen)
        self.output = nn.ModuleList(
            ConvNorm(config.channels, config.channels, 3, config.norm) for _ in chosen
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
        for lateral, output, level in reversed(
            [*zip(self.lateral, self.output, self.levels, strict=True)]
        ):
            feature = features[level - 2]
            above = (
                None
                if merged is None
                else F.interpolate(merged, size=feature.shape[-2:], mode="nearest")
            )
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


class Pyramid(NamedTuple):
    """The feature levels of some images, finest first, as maps for convolutions and as one table for whatever reads single cells of any level."""

    levels: list[Float[Tensor, "B C _ _"]]
    table: Float[Tensor, "N C"]
    """The feature vectors of all cells: level by level, in each image by image, row by row."""

    @classmethod
    def of(cls, levels: list[Float[Tensor, "B C _ _"]]) -> Pyramid:
        """Copies the levels into the table (a single one that is channels last is it already); those that are channels last become views of it, so
        that there is no second copy, the others stay beside it."""
        tables = [x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for x in levels]
        if len(levels) == 1:
            return cls(levels, tables[0])
        table = torch.cat(tables)
        parts = table.split([len(t) for t in tables])
        views = [
            part.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            for part, x in zip(parts, levels, strict=True)
        ]
        channels_last = [x.is_contiguous(memory_format=torch.channels_last) for x in levels]
        return cls(
            [
                view if same else x
                for view, x, same in zip(views, levels, channels_last, strict=True)
            ],
            table,
        )

    def maps(
        self, level: Int64[Tensor, "*n"]
    ) -> tuple[Int64[Tensor, "*n"], Int64[Tensor, "*n"], Int64[Tensor, "*n"]]:
        """First row in the table, height and width of each given level, an index into `levels`."""
        images, _, heights, widths = zip(*(x.shape for x in self.levels), strict=True)
        sizes = (b * h * w for b, h, w in zip(images, heights, widths, strict=True))
        first = (0, *accumulate(sizes))[:-1]
        return tuple(
            constant(numbers, level.device, torch.int64)[level]
            for numbers in (first, heights, widths)
        )  # ty: ignore[invalid-explicit-return]
