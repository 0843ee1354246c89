"""Pasting small masks, given on a grid over each box, into an image, one object at a time.

In:  grids f32 [N, S, S], the probability over an S x S grid on each object's own box; boxes f32
     [N, 4], xyxy in pixels of the image; the image's (height, width).
Out: for each object a `Crop`: the bool mask [h, w] of the part of the image around its box, and
     the position of that part.

No object ever becomes a float array of the size of the whole image. Bilinear sampling is separable,
so a crop is rows [h, S] @ grid @ columns [S, w], computed in bands of rows. The rules differ in
where a pixel falls on the grid and in what lies beyond the grid:

  grid         Detectron2's paste_masks_in_image: sampled at pixel centers, zero beyond the grid;
               a mask can reach a cell or more beyond its box
  border       the same positions, the outer cells continued to the edge of the box; only pixels
               whose center lies in the box
  torchvision  torchvision's paste_masks_in_image: a frame of zero cells, whole-pixel boxes, a
               bilinear resize; probability > threshold instead of >=
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

PasteRule = Literal["border", "grid", "torchvision"]
# Pixels of one band of rows: 16 MB as float32, so that even a crop of 24 megapixels costs little
# beside its bool result.
BAND_PIXELS = 4_000_000
# Size in bytes from which numpy asks the system for huge pages.
HUGE = 4 << 20


class Crop(NamedTuple):
    """The mask of one object in the part of the image that it can cover; the rest is background."""

    x0: int
    y0: int
    mask: Bool[np.ndarray, "h w"]


def paste_masks(
    grids: Float[Tensor, "N S S"],
    boxes: Float[Tensor, "N 4"],
    size: tuple[int, int],
    rule: PasteRule = "border",
    threshold: float = 0.5,
) -> Iterator[Crop]:
    """Yields the mask of each object, in order, as a crop of the image.

    Args:
        grids: probabilities over the grid of each box.
        boxes: xyxy in pixels of the image. A box without area gives an empty crop.
        size: height and width of the image.
        rule: see the head of this file.
        threshold: a pixel belongs to the object if its probability is at least this (torchvision:
            above it).

    Raises:
        ValueError: the rule is unknown.
    """
    if rule not in ("border", "grid", "torchvision"):
        raise ValueError(f'expected paste rule "border", "grid" or "torchvision", got "{rule}"')
    height, width = size
    all_grids = grids.float().cpu().numpy()
    all_boxes = boxes.float().cpu().numpy()
    for grid, (x0, y0, x1, y1) in zip(all_grids, all_boxes, strict=True):
        left, columns = _samples(x0, x1, width, len(grid), rule)
        top, rows = _samples(y0, y1, height, len(grid), rule)
        yield Crop(left, top, _crop(rows, grid, columns, threshold, strict=rule == "torchvision"))


def dense_masks(
    crops: Iterator[Crop], count: int, size: tuple[int, int]
) -> Bool[np.ndarray, "N H W"]:
    """Returns whole-image masks: count * H * W bytes, of which only written pages use memory.

    Args:
        crops: as `paste_masks` yields them.
        count: number of crops.
        size: height and width of the image.
    """
    masks = _zeros(count, *size)
    for mask, crop in zip(masks, crops, strict=True):
        height, width = crop.mask.shape
        mask[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width] = crop.mask
    return masks


def _zeros(*shape: int) -> Bool[np.ndarray, "..."]:
    """A False array in memory straight from the system, which arrives zeroed and page by page.

    numpy asks for huge pages for large arrays. Linux can take 0.2 s to make room for them for the
    masks of one image, a tenth of the whole prediction.
    """
    size = math.prod(shape)
    if size < HUGE:
        return np.zeros(shape, dtype=bool)

    private = {}
    if hasattr(mmap, "MAP_ANONYMOUS"):  # Windows has no such flags
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return np.frombuffer(mmap.mmap(-1, size, **private), dtype=bool).reshape(shape)


def _crop(
    rows: Float[np.ndarray, "h S"],
    grid: Float[np.ndarray, "S S"],
    columns: Float[np.ndarray, "w S"],
    threshold: float,
    strict: bool,
) -> Bool[np.ndarray, "h w"]:
    compare = np.greater if strict else np.greater_equal
    across = grid @ columns.T
    band = max(1, BAND_PIXELS // max(1, len(columns)))

    mask = np.empty((len(rows), len(columns)), dtype=bool)
    for start in range(0, len(rows), band):
        part = slice(start, start + band)
        compare(rows[part] @ across, np.float32(threshold), out=mask[part])
    return mask


def _samples(
    low: np.float32, high: np.float32, length: int, cells: int, rule: PasteRule
) -> tuple[int, Float[np.ndarray, "n S"]]:
    """Along one axis: the first pixel that a box can cover, and the weight of each cell per pixel.

    Args:
        low: first edge of the box.
        high: last edge of the box.
        length: pixels of the image.
        cells: cells of the grid.
        rule: see the head of this file.
    """
    if not (np.isfinite(low) and np.isfinite(high) and high > low):
        return 0, np.zeros((0, cells), np.float32)

    if rule == "torchvision":
        start, position = _torchvision_positions(low, high, length, cells)
    else:
        if rule == "grid":  # the window that Detectron2 fills
            start = max(int(np.floor(low)) - 1, 0)
            stop = min(int(np.ceil(high)) + 1, length)
        else:
            start = max(int(np.ceil(low - 0.5)), 0)
            stop = min(int(np.ceil(high - 0.5)), length)
        pixels = np.arange(start, max(start, stop), dtype=np.float32) + np.float32(0.5)
        # In a box of almost no height a pixel's center is infinitely many cells away.
        with np.errstate(over="ignore"):
            position = (pixels - low) / (high - low) * cells - np.float32(0.5)
        if rule == "border":
            position = position.clip(0, cells - 1)

    distance = np.abs(position[:, None] - np.arange(cells, dtype=np.float32))
    return start, np.maximum(1 - distance, 0, dtype=np.float32)


def _torchvision_positions(
    low: np.float32, high: np.float32, length: int, cells: int
) -> tuple[int, Float[np.ndarray, " n"]]:
    """Positions on the grid after torchvision expands the box by a cell per side and truncates it.

    Source: torchvision.models.detection.roi_heads, expand_boxes and paste_mask_in_image, in the
    same float32 steps.
    """
    center = (high + low) * np.float32(0.5)
    half = (high - low) * np.float32(0.5) * np.float32((cells + 2) / cells)
    first = int(center - half)
    last = int(center + half)
    count = max(last - first + 1, 1)
    start = max(first, 0)
    stop = min(last + 1, length)

    pixels = (np.arange(start, max(start, stop)) - first).astype(np.float32) + np.float32(0.5)
    position = np.float32((cells + 2) / count) * pixels - np.float32(0.5)
    # Cell 1 of the framed grid is cell 0 of the grid.
    return start, position.clip(0, cells + 1) - 1
