"""Greedy NMS on an NVIDIA GPU: a kernel in Triton.

A program goes through the boxes of one row, best first, and each box that is still kept suppresses
those after it that overlap it too much. So there is no matrix of all pairs, and no round that only
confirms. All rows are done at once.

Triton comes with PyTorch's builds for NVIDIA GPUs on Linux. This file is imported only where it is
installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torchvision.ops import nms

from . import nvidia


@triton.jit
def _suppress(boxes, groups, exists, kept, count, threshold, BLOCK: tl.constexpr):
    """Decides about all boxes of one row; BLOCK is at least `count`."""
    row = tl.program_id(0).to(tl.int64) * count
    index = tl.arange(0, BLOCK)
    inside = index < count

    box = boxes + (row + index) * 4
    x0 = tl.load(box, mask=inside, other=0.0)
    y0 = tl.load(box + 1, mask=inside, other=0.0)
    x1 = tl.load(box + 2, mask=inside, other=0.0)
    y1 = tl.load(box + 3, mask=inside, other=0.0)
    area = (x1 - x0) * (y1 - y0)
    group = tl.load(groups + row + index, mask=inside, other=0)
    alive = tl.load(exists + row + index, mask=inside, other=0).to(tl.int32)

    for best in range(count):
        own = tl.where(index == best, alive, 0)
        if tl.sum(own, axis=0) > 0:  # ty: ignore[invalid-argument-type]
            best_box = boxes + (row + best) * 4
            own_x0 = tl.load(best_box)
            own_y0 = tl.load(best_box + 1)
            own_x1 = tl.load(best_box + 2)
            own_y1 = tl.load(best_box + 3)
            own_area = (own_x1 - own_x0) * (own_y1 - own_y0)

            width = tl.maximum(tl.minimum(x1, own_x1) - tl.maximum(x0, own_x0), 0.0)
            height = tl.maximum(tl.minimum(y1, own_y1) - tl.maximum(y0, own_y0), 0.0)
            shared = width * height
            overlaps = shared > threshold * (area + own_area - shared)
            rival = (index > best) & (group == tl.load(groups + row + best))
            alive = tl.where(rival & overlaps, 0, alive)

    tl.store(kept + row + index, alive != 0, mask=inside)


def survivors(
    boxes: Float[Tensor, "*b n 4"],
    groups: Shaped[Tensor, "*b n"],
    exists: Bool[Tensor, "*b n"],
    threshold: float,
) -> Bool[Tensor, "*b n"]:
    """Returns the boxes that no better survivor of their group suppresses.

    Args:
        boxes: xyxy, best first.
        groups: boxes of different groups never suppress one another.
        exists: boxes that do not exist suppress nothing.
        threshold: IoU above which the later box of a pair is suppressed.
    """
    count = exists.shape[-1]
    kept = torch.empty_like(exists, memory_format=torch.contiguous_format)
    if kept.numel() == 0:
        return kept

    tensors = [t.contiguous() for t in (boxes, groups, exists)]
    block = 1 << (count - 1).bit_length()
    launch: Any = _suppress[(kept.numel() // count,)]
    with torch.cuda.device_of(boxes):
        launch(
            *tensors,
            kept,
            count,
            threshold,
            BLOCK=block,
            num_warps=min(max(block // 256, 4), 16),
        )
    return kept


# Boxes per row: as many as predictions have.
TRIED = 1000


def _try(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    number = torch.arange(2 * TRIED, dtype=torch.float64, device="cpu").view(2, TRIED)
    low = torch.stack([number * 37 % 101, number * 53 % 89], dim=-1)
    boxes = torch.cat([low, low + 5 + number[..., None] * 11 % 17], dim=-1)
    groups = (number % 3).long()
    exists = number % 7 != 0
    scores = torch.arange(TRIED, 0, -1, dtype=torch.float64, device="cpu")

    expected = torch.zeros_like(exists)
    for row in range(2):
        for group in range(3):
            own = (exists[row] & (groups[row] == group)).nonzero()[:, 0]
            expected[row, own[nms(boxes[row, own], scores[own], 0.3)]] = True
    result = survivors(boxes.to(device, dtype), groups.to(device), exists.to(device), 0.3)
    yield result.cpu().to(dtype), expected.double()


GREEDY = nvidia.DeviceProbe("greedy NMS", _try, "Triton")
