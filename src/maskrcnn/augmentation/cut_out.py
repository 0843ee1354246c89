"""Which pixels show an object, where nobody drew its mask.

In:  an image as uint8 [h, w, 3], and the boxes of its objects.
Out: for each object a mask over the pixels of its box; None where the colors do not show one.

A pixel belongs to an object if its color is not one of the background's, which the pixels around
the box show. Where boxes overlap, it belongs to the object whose colors elsewhere are the nearest.

These masks say where the visible part of an object ends after a crop or under something that is
pasted over it, and which pixels to paste. They are not truth for the mask head.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image, ImageFilter

from .moved_masks import Pixels
from .objects import pixels_of

AROUND = 1.5
"""The box enlarged by this factor, less all boxes, shows the background."""
FEWEST = 16
"""Pixels of the background, or of an object alone, that are needed."""
SAMPLES = 64
"""Of these pixels, at most so many colors are compared, spread evenly."""
DIFFERENCE = 12.0
"""A color nearer than this to one of the background is background: the distance in RGB, stretched
to 0..255 over the box and its surroundings."""
FINEST = 96
"""Pixels along a side of the box that are compared, at most. Larger boxes have coarser masks."""
MOST_SHARED = 0.45
"""With a larger part of its box in other boxes, an object is not cut out."""
LEAST_AREA = 0.1
"""An object whose mask covers a smaller part of its box looks like the background."""
LEAST_BOUNDS = 0.8
"""Where the bounds of the mask cover a smaller part of the box, the mask misses a part."""
LEAST_AGREEMENT = 0.8
"""Where a smaller part of an object's labeled points agrees with the mask, the mask is wrong."""

Crop = Bool[np.ndarray, "h w"]


def masks_by_color(
    pixels: UInt8[np.ndarray, "H W 3"],
    boxes: Float64[np.ndarray, "n 4"],
    points: Float64[np.ndarray, "n P 3"],
) -> list[Pixels | None]:
    """Returns the mask of each object; None where the colors do not show it.

    Args:
        pixels: the image.
        boxes: of all objects, xyxy.
        points: x, y, label of the points that are labeled on the objects (`Truth.points`).
    """
    height, width = pixels.shape[:2]
    boxes = np.clip(boxes, 0, (width, height, width, height))
    windows = [pixels_of(box) for box in boxes]
    owners = np.zeros(pixels.shape[:2], np.uint8)
    for left, top, right, bottom in windows:
        part = owners[top:bottom, left:right]
        np.minimum(part + 1, 2, out=part)

    # What is not background, and of this what no other box holds.
    visible = [_not_background(pixels, boxes, owners, i) for i in range(len(boxes))]
    alone = []
    for (left, top, right, bottom), mask in zip(windows, visible, strict=True):
        own = None if mask is None else mask & (owners[top:bottom, left:right] == 1)
        alone.append(None if own is None or own.sum() < FEWEST else own)

    masks: list[Pixels | None] = []
    for i, (left, top, right, bottom) in enumerate(windows):
        shared = owners[top:bottom, left:right] > 1
        mask = visible[i]
        if mask is None or shared.mean() > MOST_SHARED:
            masks.append(None)
            continue
        if shared.any():
            mask = mask & (~shared | _nearest_to(i, shared & mask, pixels, windows, alone))
        masks.append(_in_place(mask, left, top) if _is_plausible(mask) else None)
    return [
        mask if mask is not None and _agrees(mask, labeled) else None
        for mask, labeled in zip(masks, points, strict=True)
    ]


def _not_background(
    pixels: UInt8[np.ndarray, "H W 3"],
    boxes: Float64[np.ndarray, "n 4"],
    owners: UInt8[np.ndarray, "H W"],
    index: int,
) -> Crop | None:
    """Which pixels of a box have none of the colors around it; None if too few are around it."""
    left, top, right, bottom = pixels_of(_enlarged(boxes[index], pixels.shape[:2]))
    window = pixels[top:bottom, left:right].astype(np.float32)
    background = owners[top:bottom, left:right] == 0
    x0, y0, x1, y1 = pixels_of(boxes[index])
    if background.sum() < FEWEST or x1 <= x0 or y1 <= y0:
        return None

    low = window.min()
    window = (window - low) * (255 / max(window.max() - low, 1))
    inner = window[y0 - top : y1 - top, x0 - left : x1 - left]
    step = -(-max(inner.shape[:2]) // FINEST)
    coarse = inner[::step, ::step]
    differences = _squared_differences(coarse.reshape(-1, 3), _sample(window[background]))
    mask = (differences > DIFFERENCE**2).reshape(coarse.shape[:2])

    # Single pixels of noise are neither.
    smooth = Image.fromarray(mask).convert("L").filter(ImageFilter.MedianFilter(3))
    fine = np.asarray(smooth).astype(bool).repeat(step, axis=0).repeat(step, axis=1)
    return fine[: inner.shape[0], : inner.shape[1]]


def _enlarged(box: Float64[np.ndarray, "4"], size: tuple[int, ...]) -> Float64[np.ndarray, "4"]:
    """Returns a box enlarged to `AROUND` times its sides, inside an image of (height, width)."""
    margin = (AROUND - 1) / 2 * (box[2:] - box[:2])
    low = np.maximum(box[:2] - margin, 0)
    high = np.minimum(box[2:] + margin, size[::-1])
    return np.concatenate([low, high])


def _nearest_to(
    index: int,
    asked: Crop,
    pixels: UInt8[np.ndarray, "H W 3"],
    windows: list[tuple[int, int, int, int]],
    alone: list[Crop | None],
) -> Crop:
    """Which of some pixels of a box have colors of its object rather than of those beside it.

    What lies in the box of an object that shows no colors of its own is not decided, and no part.
    """
    left, top, right, bottom = windows[index]
    own = alone[index]
    if own is None:
        return np.zeros_like(asked)

    asked = asked.copy()
    others = []
    for j, (x0, y0, x1, y1) in enumerate(windows):
        if j == index or x0 >= right or x1 <= left or y0 >= bottom or y1 <= top:
            continue
        other = alone[j]
        if other is None:
            asked[max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left] = False
        else:
            others.append(_sample(pixels[y0:y1, x0:x1][other]))

    window = pixels[top:bottom, left:right]
    colors = window[asked].astype(np.float32)
    if others:
        to_own = _squared_differences(colors, _sample(window[own]))
        asked[asked] = to_own < _squared_differences(colors, np.concatenate(others))
    return asked


def _sample(colors: np.ndarray) -> np.ndarray:
    chosen = np.linspace(0, len(colors) - 1, min(SAMPLES, len(colors))).astype(int)
    return colors[chosen].astype(np.float32)


def _squared_differences(colors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """From each color to the nearest of the others."""
    lengths = np.square(others).sum(axis=1) - 2 * (colors @ others.T)
    return lengths.min(axis=1) + np.square(colors).sum(axis=1)


def _agrees(mask: Pixels, points: Float64[np.ndarray, "P 3"]) -> bool:
    """Whether a mask covers the points on its object, and not those beside it."""
    points = points[points[:, 2] > 0]
    if len(points) == 0:
        return True
    x, y = np.floor(points[:, :2] - (mask.x0, mask.y0)).astype(int).T
    height, width = mask.crop.shape
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    covered = inside & mask.crop[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return bool((covered == (points[:, 2] > 1.5)).mean() >= LEAST_AGREEMENT)


def _in_place(mask: Crop, left: int, top: int) -> Pixels:
    """A mask without its empty margins."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Pixels(crop.copy(), left + int(columns[0]), top + int(rows[0]))


def _is_plausible(mask: Crop) -> bool:
    """Whether a mask covers enough of its box and reaches its sides."""
    if mask.mean() < LEAST_AREA:
        return False
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    bounds = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return bool(bounds >= LEAST_BOUNDS * mask.size)
