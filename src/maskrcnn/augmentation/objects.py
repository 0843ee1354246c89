"""The objects of an image as a view shows them: `Objects`, in the view's pixels, and `Objects.truth(..) -> Truth` of one image for the losses.

In: boxes, masks and keypoints that dataset.py has moved by the view's matrix. paste.py hides some of them and adds others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8

from ..annotations.annotation import Box
from ..structures import Truth
from . import geometry
from .moved_masks import Mask, Pixels


@dataclass(frozen=True)
class Shape:
    """A mask in a view: moved by the view's matrix, less what was pasted over it."""

    mask: Mask
    matrix: geometry.Matrix
    hidden: Pixels | None = None
    """In the view's pixels."""

    def coverage(self, box: Box, size: int) -> UInt8[np.ndarray, "S S"]:
        """Coverage 0..255 of each cell of a grid over a box in the view."""
        covered = self.mask.coverage(self.matrix, box, size)
        if self.hidden is None:
            return covered
        shown = 255 - self.hidden.coverage(np.eye(3), box, size)
        return (covered.astype(np.uint16) * shown // 255).astype(np.uint8)

    def raster(self, box: Box) -> UInt8[np.ndarray, "h w"]:
        """Coverage 0..255 of each pixel of the view that a box touches (`pixels_of`)."""
        left, top, right, bottom = pixels_of(box)
        side = max(right - left, bottom - top)
        return self.coverage((left, top, left + side, top + side), side)[
            : bottom - top, : right - left
        ]


@dataclass(frozen=True)
class Objects:
    """What lies in a view."""

    boxes: Float64[np.ndarray, "n 4"]
    """xyxy, inside the view; those less than a pixel wide or high are not seen."""
    has_box: Bool[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    ignore: Bool[np.ndarray, " n"]
    """Regions to ignore, and objects of which next to nothing is left."""
    shapes: Sequence[Shape | None]
    keypoints: Float64[np.ndarray, "n J 3"]
    """x, y, visibility at the heat-map channels; zeros where unlabeled or outside."""

    @property
    def seen(self) -> Int64[np.ndarray, " k"]:
        """Which are large enough to count."""
        return np.flatnonzero((self.boxes[:, 2:] - self.boxes[:, :2] >= 1).all(axis=1))

    def take(self, index: Sequence[int] | np.ndarray) -> Objects:
        """Some of them, in this order."""
        arrays = {
            name: getattr(self, name)[index]
            for name in ("boxes", "has_box", "labels", "ignore", "keypoints")
        }
        return Objects(**arrays, shapes=[self.shapes[i] for i in index])

    def moved(self, x: int, y: int) -> Objects:
        """The same, this far to the right and down in a larger view; nothing of them may be hidden."""
        by = geometry.translate(x, y)
        keypoints = self.keypoints + np.array([x, y, 0.0]) * (self.keypoints[..., 2:] > 0)
        shapes = [shape and replace(shape, matrix=by @ shape.matrix) for shape in self.shapes]
        return replace(
            self, boxes=self.boxes + np.array([x, y, x, y]), keypoints=keypoints, shapes=shapes
        )

    def joined(self, others: Objects) -> Objects:
        """These, then the others."""
        names = ("boxes", "has_box", "labels", "ignore", "keypoints")
        arrays = {
            name: np.concatenate([getattr(self, name), getattr(others, name)]) for name in names
        }
        return Objects(**arrays, shapes=[*self.shapes, *others.shapes])

    def truth(self, mask_size: int | None, labeled: Bool[np.ndarray, " C"] | None = None) -> Truth:
        """The truth of one image.

        Args:
            mask_size: side of the coverage grids; None for a model without masks.
            labeled: categories whose every object is annotated; None = all.
        """
        kept = self.take(self.seen)
        size = mask_size or 1
        masks = np.zeros((len(kept.boxes), size, size), np.uint8)
        for row, shape, box in zip(masks, kept.shapes, kept.boxes, strict=True):
            if shape is not None and mask_size is not None:
                row[:] = shape.coverage(tuple(box), size)
        arrays = {
            "boxes": kept.boxes.astype(np.float32),
            "labels": kept.labels,
            "valid": np.ones(len(masks), bool),
            "ignore": kept.ignore,
            "has_box": kept.has_box,
            "masks": masks,
            "has_mask": np.any(masks, axis=(1, 2)),
            "keypoints": kept.keypoints.astype(np.float32),
            "has_keypoints": np.any(kept.keypoints[:, :, 2] > 0, axis=1),
        }
        tensors = {name: torch.from_numpy(values)[None] for name, values in arrays.items()}
        return Truth(
            **tensors, labeled=None if labeled is None else torch.from_numpy(labeled)[None]
        )


def pixels_of(box: Box | np.ndarray) -> tuple[int, int, int, int]:
    """The whole pixels (left, top, right, bottom) that a box touches."""
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    return int(left), int(top), int(right), int(bottom)
