"""Copy-paste: objects of one image, cut out along their masks, laid onto another.

In:  two images as their views show them, uint8 [h, w, 3], each with its `Objects`.
Out: the first with some objects of the second upon it, and what is left of its own.

What is pasted: a random number of the objects that have a mask, each with its box (around its mask) and its keypoints. Regions to ignore never are.
What becomes of an object that something is pasted over:
- Its mask loses what is covered, and each side of its box that was covered moves to what is left of the mask.
- Wholly covered, it is dropped. With less than a tenth of its visible mask left it is *ignore*, neither object nor background.
- Its visible keypoints under the paste are hidden ones (visibility 1): labeled, as COCO labels what stands behind something.
- Without a mask its box stands for it: with less than half of that left it is *ignore*, for what is left may be background. The hull of an object of
  keypoints alone stays as it is.
- A region to ignore shrinks in the same way to what is seen of it, and stays one. What is pasted into it is an object all the same.

Edges are hard: the paper found that blending them makes no difference.

Source: Ghiasi et al. 2021, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", section 3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, UInt8

from .augment import View
from .geometry import translate
from .moved_masks import Pixels
from .objects import Objects, pixels_of

_LEFT_OF_MASK, _LEFT_OF_BOX = 0.1, 0.5
_HALF = 128  # of 255: a pixel belongs to what covers half of it


def draw_place(
    view: View, size: tuple[int, int], rng: np.random.Generator
) -> tuple[View, tuple[int, int]]:
    """Where a view is laid on another of this (height, width): at random, inside it if it is smaller, over all of it if it is larger.

    Returns:
        The part of the view that falls onto the other, and the (x, y) of its corner there.
    """
    free = np.array([size[1] - view.size[1], size[0] - view.size[0]])
    shift = rng.integers(np.minimum(free, 0), np.maximum(free, 0) + 1)
    cut, corner = np.maximum(-shift, 0), np.maximum(shift, 0)
    common = (min(view.size[0], size[0]), min(view.size[1], size[1]))
    part = replace(
        view,
        matrix=translate(*-cut) @ view.matrix,
        size=common,
        whole=view.whole and common == view.size,
    )
    return part, (int(corner[0]), int(corner[1]))


def paste(
    image: UInt8[np.ndarray, "H W 3"],
    objects: Objects,
    source: UInt8[np.ndarray, "h w 3"],
    sources: Objects,
    corner: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "H W 3"], Objects]:
    """Lays some of the objects of `source` onto `image`.

    Args:
        image: stays as it is.
        objects: in it.
        source: no larger than the room from `corner` on.
        sources: the objects in it, those with masks with the boxes around them.
        corner: (x, y) in `image` at which `source` begins.
        rng: chooses how many and which.
    """
    possible = [i for i in sources.seen if sources.shapes[i] is not None and not sources.ignore[i]]
    if not possible:
        return image, objects
    covered, pasted = np.zeros(source.shape[:2], bool), []
    for i in rng.permutation(possible)[: rng.integers(1, len(possible) + 1)]:
        stamp = sources.shapes[i].raster(sources.boxes[i]) >= _HALF
        if stamp.any():
            left, top, right, bottom = pixels_of(sources.boxes[i])
            covered[top:bottom, left:right] |= stamp
            pasted.append(i)
    x, y = corner
    window = (slice(y, y + source.shape[0]), slice(x, x + source.shape[1]))
    image, over = image.copy(), np.zeros(image.shape[:2], bool)
    image[window][covered] = source[covered]
    over[window] = covered
    return image, hide(objects, over).joined(sources.take(pasted).moved(x, y))


def hide(objects: Objects, over: Bool[np.ndarray, "H W"]) -> Objects:
    """What is left of the objects of a view where some of its pixels are covered; the head of this file says what becomes of each."""
    boxes, ignore, shapes, keypoints = (
        objects.boxes.copy(),
        objects.ignore.copy(),
        list(objects.shapes),
        objects.keypoints.copy(),
    )
    for i in objects.seen:
        left, top, right, bottom = pixels_of(boxes[i])
        covered = over[top:bottom, left:right]
        if not covered.any():
            continue
        shape = objects.shapes[i]
        before = np.full(covered.shape, 255, np.uint8) if shape is None else shape.raster(boxes[i])
        if not before.any():
            continue  # the mask lies elsewhere than its box
        after = before * ~covered
        if shape is not None:
            shapes[i] = replace(shape, hidden=Pixels(covered, left, top))
        if shape is not None or objects.has_box[i] or not after.any():
            boxes[i] = _refit(boxes[i], before, after)
        ignore[i] |= after.sum() < before.sum() * (_LEFT_OF_BOX if shape is None else _LEFT_OF_MASK)
    cell = np.minimum(keypoints[..., :2].astype(int), (over.shape[1] - 1, over.shape[0] - 1))
    keypoints[..., 2] -= (keypoints[..., 2] == 2) & over[cell[..., 1], cell[..., 0]]
    return replace(objects, boxes=boxes, ignore=ignore, shapes=shapes, keypoints=keypoints)


def _refit(
    box: np.ndarray, before: UInt8[np.ndarray, "h w"], after: UInt8[np.ndarray, "h w"]
) -> np.ndarray:
    """A box whose sides move to what is left of the pixels in it, but for those to which nothing happened; zeros where nothing is left."""
    least = min(_HALF, before.max())  # of a thin thing no pixel may be covered by half
    if not (after >= least).any():
        return np.zeros(4)
    was, now = _bounds(before >= least), _bounds(after >= least)
    return np.where(was == now, box, np.floor(box[[0, 1, 0, 1]]) + now)


def _bounds(mask: Bool[np.ndarray, "h w"]) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
