"""4. Anchors: the boxes that the RPN moves and scales, several for each cell of each level.

Feature sizes of the levels  ->  a list of [H * W * A, 4], in the order of the RPN's outputs: rows,
columns, anchors.

Source: Ren et al. 2015, section 3.1.1; Lin et al. 2017, section 4.1 for one size per level.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..config import RPNConfig
from ..ops.device import constant


def cell_anchors(sizes: tuple[float, ...], config: RPNConfig) -> Float[Tensor, "A 4"]:
    """Returns the anchors of one cell around (0, 0).

    Args:
        sizes: square roots of the areas, in pixels.
        config: ratios (height / width), order and rounding.
    """
    return torch.tensor(_cell_values(sizes, config))


def make_anchors(
    grids: list[tuple[int, int]],
    strides: tuple[int, ...],
    padded_size: tuple[int, int],
    config: RPNConfig,
    device: torch.device,
) -> list[Float[Tensor, "n 4"]]:
    """Returns the anchors of all levels.

    Args:
        grids: (height, width) of the feature map of each level.
        strides: nominal stride of each level, in pixels.
        padded_size: (height, width) of the padded images.
        config: sizes, ratios and offset of the anchors.
        device: to create them on.
    """
    levels = []
    for (height, width), stride, sizes in zip(grids, strides, config.sizes, strict=True):
        step_y = step_x = stride
        if config.stride == "padded":
            step_y = padded_size[0] // height
            step_x = padded_size[1] // width

        y = (torch.arange(height, device=device) + config.offset) * step_y
        x = (torch.arange(width, device=device) + config.offset) * step_x
        grid_y, grid_x = torch.meshgrid(y.float(), x.float(), indexing="ij")
        centers = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
        own = constant(_cell_values(sizes, config), device)
        levels.append((centers[:, :, None] + own).reshape(-1, 4))
    return levels


@lru_cache(maxsize=64)
def _cell_values(sizes: tuple[float, ...], config: RPNConfig) -> tuple[tuple[float, ...], ...]:
    """`cell_anchors` as plain numbers, which an export takes as constants."""
    if config.order == "size":
        pairs = [(size, ratio) for size in sizes for ratio in config.ratios]
    else:
        pairs = [(size, ratio) for ratio in config.ratios for size in sizes]

    halves = np.array([(size / ratio**0.5 / 2, size * ratio**0.5 / 2) for size, ratio in pairs])
    anchors = np.concatenate([-halves, halves], axis=1).astype(np.float32)
    if config.rounded:
        anchors = anchors.round()
    return tuple(map(tuple, anchors.tolist()))
