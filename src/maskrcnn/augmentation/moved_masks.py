"""Annotated masks moved by a matrix: bounds of the visible part, coverage of a grid over a box.

In:  an `Annotation`. Its mask is kept as polygons, or as the pixels in its bounding box (from RLE),
     in pixels of the original image.
Out: bounds and coverage in pixels of a view. Nothing here takes as much memory as a whole image per
     object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from ..annotations.annotation import Annotation, BoxXYXY
from ..annotations.rle import decode_crop, polygon_coverage
from .geometry import Matrix, is_axis_aligned, move_boxes, move_points, translate

_MAX_POINTS = 20_000  # about how many pixels of a rotated mask are read for its bounds
_MAX_SAMPLES = (
    6  # per side of a cell, for a rotated mask of pixels; below that two samples per pixel
)


class Mask(Protocol):
    """An object's mask in the original image."""

    def bounds(self, matrix: Matrix, size: tuple[int, int]) -> BoxXYXY | None:
        """Returns the bounding box (xyxy) of the part inside a view; None if no part is.

        Args:
            matrix: from original to view pixels.
            size: (height, width) of the view.
        """
        ...

    def coverage(self, matrix: Matrix, box: BoxXYXY, size: int) -> UInt8[np.ndarray, "S S"]:
        """Returns coverage 0..255 of each cell of a grid over a box in the view.

        Args:
            matrix: from original to view pixels.
            box: xyxy in view pixels.
            size: number of cells per side.
        """
        ...

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        ...


def mask_of(annotation: Annotation) -> Mask | None:
    """Returns the mask of an annotation, ready to be moved; None without one."""
    if annotation.polygons is not None:
        return Polygons(annotation.polygons)
    return None if annotation.rle is None else Pixels(*decode_crop(annotation.rle))


@dataclass(frozen=True)
class Polygons:
    """A mask that is a union of polygons."""

    polygons: tuple[np.ndarray, ...]

    def bounds(self, matrix: Matrix, size: tuple[int, int]) -> BoxXYXY | None:
        """Returns the bounding box of the parts of the polygons inside the view."""
        height, width = size
        corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float64)

        # the extremes of the common region are ends of clipped edges, or corners of the view
        candidates = []
        for polygon in self.polygons:
            points = move_points(matrix, polygon)
            candidates += [_clipped_ends(points, size), corners[_contains(points, corners)]]
        ends = np.concatenate(candidates)
        if len(ends) == 0:
            return None

        (x0, y0), (x1, y1) = ends.min(axis=0), ends.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def coverage(self, matrix: Matrix, box: BoxXYXY, size: int) -> UInt8[np.ndarray, "S S"]:
        """Returns the coverage, exact along sample lines."""
        return polygon_coverage([move_points(matrix, p) for p in self.polygons], box, size)

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        return sum(p.nbytes for p in self.polygons)


@dataclass(frozen=True)
class Pixels:
    """A mask of whole pixels inside a bounding box."""

    crop: np.ndarray
    """bool [h, w]."""
    x0: int
    y0: int

    @property
    def extent(self) -> Float64[np.ndarray, "4"]:
        """The bounding box (xyxy), in pixels of the image."""
        height, width = self.crop.shape
        return np.array([self.x0, self.y0, self.x0 + width, self.y0 + height], dtype=np.float64)

    def bounds(self, matrix: Matrix, size: tuple[int, int]) -> BoxXYXY | None:
        """Returns the bounding box of the pixels that touch the view.

        Under a rotation it is that of the pixels whose centers lie in the view.
        """
        # the part of the crop under the view
        view = np.array([0.0, 0.0, size[1], size[0]])
        to_crop = translate(-self.x0, -self.y0) @ np.linalg.inv(matrix)
        x0, y0, x1, y1 = move_boxes(to_crop, view)
        top = max(int(np.floor(y0)), 0)
        left = max(int(np.floor(x0)), 0)
        part = self.crop[top : max(int(np.ceil(y1)), 0), left : max(int(np.ceil(x1)), 0)]
        if not is_axis_aligned(matrix):
            return self._rotated_bounds(part, left, top, matrix, view)

        rows = np.flatnonzero(part.any(axis=1))
        columns = np.flatnonzero(part.any(axis=0))
        if len(rows) == 0:
            return None
        in_part = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        in_image = in_part + [left + self.x0, top + self.y0] * 2
        return _clip_to_view(move_boxes(matrix, in_image.astype(np.float64)), view)

    def _rotated_bounds(
        self, part: np.ndarray, left: int, top: int, matrix: Matrix, view: np.ndarray
    ) -> BoxXYXY | None:
        step = max(1, int(np.sqrt(part.size / _MAX_POINTS)))
        rows, columns = np.nonzero(part[::step, ::step])
        offset = (left + self.x0, top + self.y0)
        centers = np.stack([columns + 0.5, rows + 0.5], axis=1) * step + offset
        centers = move_points(matrix, centers)
        centers = centers[((centers >= view[:2]) & (centers <= view[2:])).all(axis=1)]
        if len(centers) == 0:
            return None

        half_pixel = np.abs(matrix[:2, :2]).sum(axis=1) * step / 2
        box = np.concatenate([centers.min(axis=0) - half_pixel, centers.max(axis=0) + half_pixel])
        return _clip_to_view(box, view)

    def coverage(self, matrix: Matrix, box: BoxXYXY, size: int) -> UInt8[np.ndarray, "S S"]:
        """Returns exact areas, or fine samples where the mask is rotated."""
        # cells of the grid -> pixels of the image -> pixels of the crop
        from_grid = np.linalg.inv(matrix) @ np.array(
            [
                [(box[2] - box[0]) / size, 0, box[0]],
                [0, (box[3] - box[1]) / size, box[1]],
                [0, 0, 1],
            ]
        )
        from_grid = translate(-self.x0, -self.y0) @ from_grid
        if not is_axis_aligned(matrix):
            return self._rotated_coverage(from_grid, size)

        (a, b), (c, d) = from_grid[:2, :2]
        is_transposed = abs(b) > abs(a)
        x_scale = b if is_transposed else a
        y_scale = c if is_transposed else d
        steps = np.arange(size + 1.0)
        x_overlap = _overlaps(steps * x_scale + from_grid[0, 2], self.crop.shape[1])
        y_overlap = _overlaps(steps * y_scale + from_grid[1, 2], self.crop.shape[0])
        covered = y_overlap @ self.crop.astype(np.float32) @ x_overlap.T
        return ((covered.T if is_transposed else covered) * 255 + 0.5).astype(np.uint8)

    def _rotated_coverage(self, from_grid: Matrix, size: int) -> np.ndarray:
        pixels_per_cell = np.linalg.norm(from_grid[:2, :2], axis=0).max()
        samples = int(np.clip(np.ceil(2 * pixels_per_cell), 1, _MAX_SAMPLES))

        # a margin, so that the border fades to zero
        padded = np.zeros((self.crop.shape[0] + 2, self.crop.shape[1] + 2), np.uint8)
        padded[1:-1, 1:-1] = self.crop * np.uint8(255)

        from_samples = translate(1, 1) @ from_grid @ np.diag([1 / samples, 1 / samples, 1])
        rotated = Image.fromarray(padded).transform(
            (size * samples, size * samples),
            Image.Transform.AFFINE,
            tuple(from_samples[:2].reshape(-1)),
            resample=Image.Resampling.BILINEAR,
        )
        return np.asarray(rotated.reduce(samples))

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        return self.crop.nbytes


def _overlaps(edges: np.ndarray, pixels: int) -> np.ndarray:
    """Returns the share of each pixel in each cell between two edges: [cells, pixels]."""
    low = np.minimum(edges[:-1], edges[1:])[:, None]
    high = np.maximum(edges[:-1], edges[1:])[:, None]
    pixel = np.arange(pixels)
    common = np.minimum(high, pixel + 1) - np.maximum(low, pixel)
    return (np.maximum(common, 0) / (high - low)).astype(np.float32)


def _clip_to_view(box: np.ndarray, view: np.ndarray) -> BoxXYXY | None:
    x0, y0 = np.maximum(box[:2], view[:2])
    x1, y1 = np.minimum(box[2:], view[2:])
    return (float(x0), float(y0), float(x1), float(y1)) if x1 > x0 and y1 > y0 else None


def _clipped_ends(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns both ends of each edge of a polygon after clipping to a view.

    Edges outside give none.

    Source: Liang and Barsky 1984.
    """
    delta = np.roll(points, -1, axis=0) - points

    # the part of each edge inside the view, as positions 0..1 along it
    enter = np.zeros(len(points))
    leave = np.ones(len(points))
    for axis, limit in ((0, size[1]), (1, size[0])):
        start = points[:, axis]
        step = delta[:, axis]
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = np.sort(np.stack([-start / step, (limit - start) / step]), axis=0)
        parallel = step == 0
        inside = (start >= 0) & (start <= limit)
        enter = np.where(parallel, np.where(inside, enter, 2.0), np.maximum(enter, low))
        leave = np.where(parallel, leave, np.minimum(leave, high))

    kept = enter <= leave
    first_ends = points[kept] + enter[kept, None] * delta[kept]
    last_ends = points[kept] + leave[kept, None] * delta[kept]
    return np.concatenate([first_ends, last_ends])


def _contains(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns which points lie inside, by the number of edges to their right."""
    after = np.roll(polygon, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    crosses = (polygon[:, 1] > y) != (after[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        dx = after[:, 0] - polygon[:, 0]
        dy = after[:, 1] - polygon[:, 1]
        x_crossing = polygon[:, 0] + (y - polygon[:, 1]) * dx / dy
    return (crosses & (x < x_crossing)).sum(axis=1) % 2 == 1
