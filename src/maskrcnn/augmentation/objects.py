"""The objects of an image in a view, and their truth for the losses.

In:  boxes, masks and keypoints that training_set.py has moved by the view's matrix. copy_paste.py
     hides some of them and adds others.
Out: the `Truth` of one image, in the view's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8

from ..annotations.annotation import BoxXYXY
from ..structures import Truth
from . import geometry
from .moved_masks import Mask, Pixels

_ARRAYS = ("boxes", "has_box", "labels", "ignore", "keypoints", "points", "spans", "annotation_ids")


@dataclass(frozen=True)
class ViewMask:
    """A mask in a view: moved by the view's matrix, less what was pasted over it."""

    mask: Mask
    matrix: geometry.Matrix
    hidden: Pixels | None = None
    """The pixels of the view that something was pasted over."""
    by_color: bool = False
    """Whether nobody drew it (cut_out.py). Such a mask is not truth for the mask head."""

    def coverage(self, box: BoxXYXY, size: int) -> UInt8[np.ndarray, "S S"]:
        """Returns coverage 0..255 of each cell of a grid over a box in the view.

        Args:
            box: xyxy in view pixels.
            size: number of cells per side.
        """
        covered = self.mask.coverage(self.matrix, box, size)
        if self.hidden is None:
            return covered
        visible = 255 - self.hidden.coverage(np.eye(3), box, size)
        return (covered.astype(np.uint16) * visible // 255).astype(np.uint8)

    def raster(self, box: BoxXYXY) -> UInt8[np.ndarray, "h w"]:
        """Returns coverage 0..255 of each pixel that a box touches (see `pixels_of`)."""
        left, top, right, bottom = pixels_of(box)
        side = max(right - left, bottom - top)
        square = self.coverage((left, top, left + side, top + side), side)
        return square[: bottom - top, : right - left]


@dataclass(frozen=True)
class ViewObjects:
    """The objects in a view, in its pixels."""

    boxes: Float64[np.ndarray, "n 4"]
    """xyxy, inside the view. An object less than a pixel wide or high is not visible."""
    has_box: Bool[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    ignore: Bool[np.ndarray, " n"]
    """Regions to ignore, and objects of which next to nothing is left."""
    masks: Sequence[ViewMask | None]
    keypoints: Float64[np.ndarray, "n J 3"]
    """x, y, visibility at the heatmap channels; zeros where unlabeled or outside."""
    points: Float64[np.ndarray, "n P 3"]
    """x, y, label of points annotated instead of a mask (`Truth.points`); zeros outside."""
    spans: Bool[np.ndarray, "n 2"]
    """Whether an object with a box and no mask reaches all columns and all rows of the box
    (`Truth.spans`)."""
    annotation_ids: Int64[np.ndarray, " n"]

    @property
    def visible(self) -> Int64[np.ndarray, " k"]:
        """Indices of the objects at least a pixel wide and high."""
        return np.flatnonzero((self.boxes[:, 2:] - self.boxes[:, :2] >= 1).all(axis=1))

    def take(self, indices: Sequence[int] | np.ndarray) -> ViewObjects:
        """Returns the objects at these indices, in this order."""
        arrays = {name: getattr(self, name)[indices] for name in _ARRAYS}
        return ViewObjects(**arrays, masks=[self.masks[i] for i in indices])

    def moved(self, x: int, y: int) -> ViewObjects:
        """Returns the objects moved right and down in a larger view.

        No object may have a hidden part.
        """
        shift = geometry.translate(x, y)
        keypoints = self.keypoints + np.array([x, y, 0.0]) * (self.keypoints[..., 2:] > 0)
        points = self.points + np.array([x, y, 0.0]) * (self.points[..., 2:] > 0)
        masks = [mask and replace(mask, matrix=shift @ mask.matrix) for mask in self.masks]
        boxes = self.boxes + np.array([x, y, x, y])
        return replace(self, boxes=boxes, keypoints=keypoints, points=points, masks=masks)

    def joined(self, others: ViewObjects) -> ViewObjects:
        """Returns these objects followed by the others."""
        most = max(self.points.shape[1], others.points.shape[1])
        self = replace(self, points=padded_points(self.points, most))
        others = replace(others, points=padded_points(others.points, most))
        pairs = {name: [getattr(self, name), getattr(others, name)] for name in _ARRAYS}
        arrays = {name: np.concatenate(pair) for name, pair in pairs.items()}
        return ViewObjects(**arrays, masks=[*self.masks, *others.masks])

    def truth(self, mask_size: int | None, labeled: Bool[np.ndarray, " C"] | None = None) -> Truth:
        """Returns the truth of one image.

        Args:
            mask_size: side of the coverage grids; None for a model without masks.
            labeled: categories whose every object is annotated; None = all.
        """
        kept = self.take(self.visible)
        size = mask_size or 1
        grids = np.zeros((len(kept.boxes), size, size), np.uint8)
        for grid, mask, box in zip(grids, kept.masks, kept.boxes, strict=True):
            if mask is not None and not mask.by_color and mask_size is not None:
                grid[:] = mask.coverage(tuple(box), size)

        arrays = {
            "boxes": kept.boxes.astype(np.float32),
            "labels": kept.labels,
            "valid": np.ones(len(grids), bool),
            "ignore": kept.ignore,
            "has_box": kept.has_box,
            "masks": grids,
            "has_mask": np.any(grids, axis=(1, 2)),
            "spans": kept.spans,
            "keypoints": kept.keypoints.astype(np.float32),
            "has_keypoints": np.any(kept.keypoints[:, :, 2] > 0, axis=1),
            "annotation_ids": kept.annotation_ids,
        }
        tensors = {name: torch.from_numpy(values)[None] for name, values in arrays.items()}
        labeled_row = None if labeled is None else torch.from_numpy(labeled)[None]
        points = None
        if kept.points.shape[1]:
            points = torch.from_numpy(kept.points.astype(np.float32))[None]
        return Truth(**tensors, points=points, labeled=labeled_row)


def padded_points(points: Float64[np.ndarray, "n P 3"], most: int) -> Float64[np.ndarray, "n P2 3"]:
    """Returns the points of each object followed by zeros, `most` in all."""
    return np.pad(points, ((0, 0), (0, most - points.shape[1]), (0, 0)))


def pixels_of(box: BoxXYXY | np.ndarray) -> tuple[int, int, int, int]:
    """Returns the range (left, top, right, bottom) of whole pixels that a box touches."""
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    return int(left), int(top), int(right), int(bottom)
