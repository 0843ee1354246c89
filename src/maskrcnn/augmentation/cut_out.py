"""Which pixels of a box show its object, where nobody drew a mask.

In:  a view as uint8 [h, w, 3], the boxes of all its objects, and which of them is asked for.
Out: a mask over the pixels of this box; None where the surroundings show too little background.

A pixel belongs to the object if its color is not one of the background's, which the pixels around
the box show. Of objects that no other touches, these masks have a mean IoU of 0.94 with the true
ones on drawn scenes, 0.91 on cell nuclei, 0.67 on seedlings and 0.49 on photographs of COCO. That
is enough to paste an object, and too little to learn its mask from.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image, ImageFilter

from .objects import pixels_of

AROUND = 1.5
"""The box enlarged by this factor, less all boxes, shows the background."""
FEWEST = 16
"""Pixels of background that are needed."""
SAMPLES = 64
"""Of these pixels, at most so many colors are compared, spread evenly."""
DIFFERENCE = 12.0
"""A color nearer than this to one of the background is background: the distance in RGB, stretched
to 0..255 over the box and its surroundings."""
FINEST = 96
"""Pixels along a side of the box that are compared, at most. Larger boxes have coarser masks."""


def cut_out(
    pixels: UInt8[np.ndarray, "H W 3"], boxes: Float64[np.ndarray, "n 4"], index: int
) -> Bool[np.ndarray, "h w"] | None:
    """Returns the mask of an object over the pixels that its box touches (see `pixels_of`).

    Args:
        pixels: the view.
        boxes: of all objects, xyxy, inside the view.
        index: of the object; no other box should reach into its box.
    """
    around = enlarged(boxes[index], pixels.shape[:2])
    left, top, right, bottom = pixels_of(around)
    window = pixels[top:bottom, left:right].astype(np.float32)
    background = np.ones(window.shape[:2], bool)
    near = (boxes[:, :2] < around[2:]).all(axis=1) & (boxes[:, 2:] > around[:2]).all(axis=1)
    for box in boxes[near]:
        x0, y0, x1, y1 = np.maximum(np.subtract(pixels_of(box), (left, top, left, top)), 0)
        background[y0:y1, x0:x1] = False
    if background.sum() < FEWEST:
        return None

    low = window.min()
    window = (window - low) * (255 / max(window.max() - low, 1))
    colors = window[background]
    colors = colors[np.linspace(0, len(colors) - 1, min(SAMPLES, len(colors))).astype(int)]

    x0, y0, x1, y1 = pixels_of(boxes[index])
    inner = window[y0 - top : y1 - top, x0 - left : x1 - left]
    step = -(-max(inner.shape[:2]) // FINEST)
    coarse = inner[::step, ::step]
    differences = np.square(coarse[:, :, None] - colors).sum(axis=-1).min(axis=-1)
    mask = differences > DIFFERENCE**2

    # Single pixels of noise are neither.
    smooth = Image.fromarray(mask).convert("L").filter(ImageFilter.MedianFilter(3))
    fine = np.asarray(smooth).astype(bool).repeat(step, axis=0).repeat(step, axis=1)
    return fine[: inner.shape[0], : inner.shape[1]]


def enlarged(box: Float64[np.ndarray, "4"], size: tuple[int, ...]) -> Float64[np.ndarray, "4"]:
    """Returns a box enlarged to `AROUND` times its sides, inside an image of (height, width)."""
    margin = (AROUND - 1) / 2 * (box[2:] - box[:2])
    low = np.maximum(box[:2] - margin, 0)
    high = np.minimum(box[2:] + margin, size[::-1])
    return np.concatenate([low, high])
