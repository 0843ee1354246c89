"""Copy-paste: objects of one image, cut out and pasted onto another.

In:  two views as uint8 [h, w, 3], each with its `ViewObjects`.
Out: the first image with some objects of the second pasted onto it, and the objects that result.

What is pasted: a random number of the objects that have a mask, cut out along it, each with its
keypoints and with the bounds of the mask as its box. Where nobody drew a mask, it may be one by
color (cut_out.py), and the box is the annotated one. Regions to ignore are never pasted.

What happens to an object that something is pasted over:
- Its mask loses what is covered, and each side of its box that was covered moves to the rest of the
  mask.
- Wholly covered, it is dropped. With less than a tenth of its visible mask left it is *ignore*,
  neither object nor background.
- Its visible keypoints under the paste become hidden (visibility 1), which is how COCO labels
  occluded keypoints.
- Without a mask, its box replaces the mask. With less than half of the box left the object is
  *ignore*, because the rest may be background. The hull of an object with keypoints only stays as
  it is. Its box no longer trains masks: the object may not reach all sides of what is left.
- With a mask by color, its box still trains masks where the rest reaches all columns or rows.
- Its labeled points under the paste are dropped.
- A region to ignore shrinks in the same way and stays one. An object pasted into it is an object
  all the same.

Edges are hard: the paper found that blending them makes no difference.

Source: Ghiasi et al. 2021, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation", section 3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, UInt8

from .augment import AugmentedView
from .geometry import translate
from .moved_masks import Pixels
from .objects import ViewObjects, pixels_of

# An object with a smaller part left becomes *ignore*.
_MIN_MASK_LEFT = 0.1
_MIN_BOX_LEFT = 0.5

_HALF = 128  # of 255: a pixel belongs to what covers half of it


def draw_paste_position(
    view: AugmentedView, size: tuple[int, int], rng: np.random.Generator
) -> tuple[AugmentedView, tuple[int, int]]:
    """Draws where one view is laid on another.

    A smaller view is placed inside the other, a larger one covers all of it.

    Args:
        view: the view to lay on the other.
        size: (height, width) of the other view.
        rng: source of randomness.

    Returns:
        The part of the view that falls onto the other, and the (x, y) of its corner there.
    """
    free = np.array([size[1] - view.size[1], size[0] - view.size[0]])
    shift = rng.integers(np.minimum(free, 0), np.maximum(free, 0) + 1)
    cut = np.maximum(-shift, 0)
    corner = np.maximum(shift, 0)

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
    objects: ViewObjects,
    source: UInt8[np.ndarray, "h w 3"],
    source_objects: ViewObjects,
    corner: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "H W 3"], ViewObjects]:
    """Pastes some of the objects of `source` onto `image`.

    Args:
        image: not modified.
        objects: the objects in it.
        source: fits into `image` from `corner` on.
        source_objects: the objects in it. What is pasted of one with a mask lies in its box.
        corner: (x, y) in `image` at which `source` begins.
        rng: chooses how many objects are pasted, and which.

    Returns:
        The image with the pasted objects, and all objects in it, the pasted ones last.
    """
    candidates = [
        i
        for i in source_objects.visible
        if source_objects.masks[i] is not None and not source_objects.ignore[i]
    ]
    if not candidates:
        return image, objects

    # the chosen objects, and the pixels of the source that they cover
    covered = np.zeros(source.shape[:2], bool)
    pasted = []
    for i in rng.permutation(candidates)[: rng.integers(1, len(candidates) + 1)]:
        mask = source_objects.masks[i]
        assert mask is not None
        stamp = mask.raster(source_objects.boxes[i]) >= _HALF
        if stamp.any():
            left, top, right, bottom = pixels_of(source_objects.boxes[i])
            covered[top:bottom, left:right] |= stamp
            pasted.append(i)

    x, y = corner
    window = (slice(y, y + source.shape[0]), slice(x, x + source.shape[1]))
    image = image.copy()
    image[window][covered] = source[covered]
    covered_in_image = np.zeros(image.shape[:2], bool)
    covered_in_image[window] = covered
    remaining = hide(objects, covered_in_image)
    return image, remaining.joined(source_objects.take(pasted).moved(x, y))


def hide(objects: ViewObjects, covered: Bool[np.ndarray, "H W"]) -> ViewObjects:
    """Returns what is left of the objects of a view where some of its pixels are covered.

    The docstring of this file describes what happens to each object.

    Args:
        objects: the objects of the view.
        covered: pixels of the view that something was pasted over.
    """
    boxes = objects.boxes.copy()
    ignore = objects.ignore.copy()
    masks = list(objects.masks)
    keypoints = objects.keypoints.copy()
    spans = objects.spans.copy()

    for i in objects.visible:
        left, top, right, bottom = pixels_of(boxes[i])
        covered_here = covered[top:bottom, left:right]
        if not covered_here.any():
            continue
        mask = objects.masks[i]
        if mask is None:
            before = np.full(covered_here.shape, 255, np.uint8)
        else:
            before = mask.raster(boxes[i])
        if not before.any():
            continue  # the mask does not meet its box

        after = before * ~covered_here
        if mask is not None:
            masks[i] = replace(mask, hidden=Pixels(covered_here, left, top))
        if mask is not None or objects.has_box[i] or not after.any():
            boxes[i] = _refit(boxes[i], before, after)
        spans[i] &= mask is not None and _spans(after)
        min_left = _MIN_BOX_LEFT if mask is None else _MIN_MASK_LEFT
        ignore[i] |= after.sum() < before.sum() * min_left

    # covered visible keypoints become hidden ones
    cell = np.minimum(keypoints[..., :2].astype(int), (covered.shape[1] - 1, covered.shape[0] - 1))
    is_covered = covered[cell[..., 1], cell[..., 0]]
    keypoints[..., 2] -= (keypoints[..., 2] == 2) & is_covered
    points = objects.points.copy()
    cell = np.minimum(points[..., :2].astype(int), (covered.shape[1] - 1, covered.shape[0] - 1))
    points[covered[cell[..., 1], cell[..., 0]]] = 0
    return replace(
        objects,
        boxes=boxes,
        ignore=ignore,
        masks=masks,
        keypoints=keypoints,
        points=points,
        spans=spans,
    )


def _spans(after: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "2"]:
    """Whether a mask has pixels in all columns and in all rows between its first and its last."""
    left = after >= min(_HALF, after.max())
    if not after.any():
        return np.zeros(2, bool)
    x0, y0, x1, y1 = _bounds(left)
    left = left[y0:y1, x0:x1]
    return np.array([left.any(axis=0).all(), left.any(axis=1).all()])


def _refit(
    box: np.ndarray, before: UInt8[np.ndarray, "h w"], after: UInt8[np.ndarray, "h w"]
) -> np.ndarray:
    """Moves the sides of a box to what is left of the pixels in it; zeros where nothing is left.

    Sides at which nothing was covered stay where they are.
    """
    least = min(_HALF, before.max())  # no pixel of a thin object may be half covered
    if not (after >= least).any():
        return np.zeros(4)
    old = _bounds(before >= least)
    new = _bounds(after >= least)
    return np.where(old == new, box, np.floor(box[[0, 1, 0, 1]]) + new)


def _bounds(mask: Bool[np.ndarray, "h w"]) -> np.ndarray:
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
