"""4. Anchors: the boxes that the RPN moves and scales, some for each cell of each level.

Feature sizes of the levels  ->  a list of [H * W * A, 4], in the order in which the RPN's outputs are read: rows, columns, anchors.

Source: Ren et al. 2015, section 3.1.1; Lin et al. 2017, section 4.1 for one size a level.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import RPNConfig
from ..ops.device import constant


def cell_anchors(sizes: tuple[float, ...], config: RPNConfig) -> Float[Tensor, "A 4"]:
    """The anchors of one cell around (0, 0): every size (root of the area) with every ratio (height / width)."""
    if config.order == "size":
        pairs = [(size, ratio) for size in sizes for ratio in config.ratios]
    else:
        pairs = [(size, ratio) for ratio in config.ratios for size in sizes]
    halves = torch.tensor(
        [(size / ratio**0.5 / 2, size * ratio**0.5 / 2) for size, ratio in pairs],
        dtype=torch.float64,
    )
    anchors = torch.cat([-halves, halves], dim=1).float()
    return anchors.round() if config.rounded else anchors


def make_anchors(
    grids: list[tuple[int, int]],
    strides: tuple[int, ...],
    padded_size: tuple[int, int],
    config: RPNConfig,
    device: torch.device,
) -> list[Float[Tensor, "n 4"]]:
    """The anchors of all levels, whose feature maps have the sizes `grids`."""
    levels = []
    for (height, width), stride, sizes in zip(grids, strides, config.sizes, strict=True):
        step_y, step_x = (
            (padded_size[0] // height, padded_size[1] // width)
            if config.stride == "padded"
            else (stride, stride)
        )
        y = (torch.arange(height, device=device) + config.offset) * step_y
        x = (torch.arange(width, device=device) + config.offset) * step_x
        grid_y, grid_x = torch.meshgrid(y.float(), x.float(), indexing="ij")
        corners = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
        levels.append(
            (corners[:, :, None] + constant(_numbers(sizes, config), device)).reshape(-1, 4)
        )
    return levels


@lru_cache(maxsize=64)
def _numbers(sizes: tuple[float, ...], config: RPNConfig) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, cell_anchors(sizes, config).tolist()))
