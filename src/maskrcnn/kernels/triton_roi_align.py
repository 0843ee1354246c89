"""RoIAlign's weighted sum on an NVIDIA GPU, for predictions: a kernel in Triton.

It computes what `weighted_sum` in `roi_align_kernels.py` does. A program takes one row of bins of
one RoI, and reads each feature vector as a whole. PyTorch's `embedding_bag` reads single values,
by an index of every cell that every bin reads, which is not built here.

Triton comes with PyTorch's builds for NVIDIA GPUs on Linux. This file is imported only where it is
installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

from . import nvidia
from .probe import whole_numbers


@triton.jit
def _sum_row_of_bins(
    table,
    first,
    rows,
    row_weights,
    columns,
    column_weights,
    width,
    out,
    size,
    channels,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The bins of one row (axis 1 of the grid) of one RoI (axis 0), `size` of them."""
    roi = tl.program_id(0).to(tl.int64)
    row = roi * size + tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < channels
    start = tl.load(first + roi)
    map_width = tl.load(width + roi)

    for column in range(size):
        total = tl.full([BLOCK], 0.0, tl.float32)
        for i in tl.static_range(TAPS):
            line = start + tl.load(rows + row * TAPS + i) * map_width
            line_weight = tl.load(row_weights + row * TAPS + i)
            for j in tl.static_range(TAPS):
                tap = (roi * size + column) * TAPS + j
                weight = line_weight * tl.load(column_weights + tap)
                cell = (line + tl.load(columns + tap)) * channels
                values = tl.load(table + cell + channel, mask=exists, other=0.0)
                total += weight * values.to(tl.float32)
        bin_start = (row * size + column) * channels
        tl.store(out + bin_start + channel, total.to(out.dtype.element_ty), mask=exists)


def weighted_sum(
    table: Float[Tensor, "N C"],
    first: Int64[Tensor, "K"],
    rows: tuple[Int64[Tensor, "K S T"], Float[Tensor, "K S T"]],
    columns: tuple[Int64[Tensor, "K S T"], Float[Tensor, "K S T"]],
    width: Int64[Tensor, "K"],
) -> Float[Tensor, "bins C"]:
    """The bins of RoIs; arguments and result as in `roi_align_kernels.weighted_sum`."""
    count, size, taps = rows[0].shape
    channels = table.shape[1]
    out = table.new_empty(count * size * size, channels)
    tensors = [t.contiguous() for t in (table, first, *rows, *columns, width)]

    launch: Any = _sum_row_of_bins[(count, size)]
    with torch.cuda.device_of(table):
        launch(
            *tensors,
            out,
            size,
            channels,
            TAPS=taps,
            BLOCK=1 << (channels - 1).bit_length(),
            num_warps=1,
        )
    return out


# Channels and bins per axis.
TRIED = ((256, 7), (24, 3))


def _try(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    # Maps of 6 x 5 cells; the weights of an axis are halves.
    for channels, size in TRIED:
        table = whole_numbers(60, channels)
        first = torch.tensor([0, 30, 30], device="cpu")
        width = torch.full_like(first, 5)
        cells = torch.arange(3 * size * 4, device="cpu").view(3, size, 4)
        y, x = cells % 6, cells % 5
        weight_y, weight_x = whole_numbers(2, *cells.shape) / 2

        cell = (first[:, None, None] + y * width[:, None, None])[:, :, None, :, None]
        cell = cell + x[:, None, :, None, :]
        weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
        expected = torch.einsum("krcij,krcijd->krcd", weight, table[cell]).flatten(0, 2)

        first, width, y, x = (t.to(device) for t in (first, width, y, x))
        weight_y, weight_x = (t.to(device, torch.float32) for t in (weight_y, weight_x))
        result = weighted_sum(table.to(device, dtype), first, (y, weight_y), (x, weight_x), width)
        yield result.cpu(), expected


WEIGHTED_SUM = nvidia.DeviceProbe("weighted sum of RoIAlign", _try, "Triton")
