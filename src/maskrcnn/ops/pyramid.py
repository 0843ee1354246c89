"""The features of several pyramid levels, as maps and as one table of cells.

In:  levels, a list of [B, C, H, W].
Out: `Pyramid`: the levels, and the feature vectors of all cells of all levels as the rows of one
     table, for operations that read single cells of any level.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .device import constant


class Pyramid(NamedTuple):
    """The feature levels of a batch, finest first."""

    levels: list[Float[Tensor, "B C _ _"]]
    table: Float[Tensor, "N C"]
    """Feature vectors of all cells: level by level, within a level image by image, row by row."""

    @classmethod
    def of(cls, levels: list[Float[Tensor, "B C _ _"]]) -> Pyramid:
        """Builds the table from the levels.

        Levels in channels-last layout become views of the table, so that there is no second copy.
        Others are kept beside it. A single channels-last level already is the table.
        """
        tables = [x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for x in levels]
        if len(levels) == 1 or torch.compiler.is_exporting():  # a graph reads the levels
            return cls(levels, tables[0])

        table = torch.cat(tables)
        shared = []
        for x, part in zip(levels, table.split([len(t) for t in tables]), strict=True):
            if x.is_contiguous(memory_format=torch.channels_last):
                x = part.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            shared.append(x)
        return cls(shared, table)

    def maps(
        self, level: Int64[Tensor, "*n"]
    ) -> tuple[Int64[Tensor, "*n"], Int64[Tensor, "*n"], Int64[Tensor, "*n"]]:
        """Returns first table row, height and width of the levels with the given indices."""
        images, _, heights, widths = zip(*(x.shape for x in self.levels), strict=True)
        sizes = (b * h * w for b, h, w in zip(images, heights, widths, strict=True))
        first = (0, *accumulate(sizes))[:-1]
        return tuple(
            constant(numbers, level.device, torch.int64)[level]
            for numbers in (first, heights, widths)
        )  # ty: ignore[invalid-explicit-return]
