"""An annotated mask under a matrix: the box around what is seen of it, and its coverage of a small grid over a box.

A mask is kept as its polygons (polygons) or as the pixels in its own bounding box (RLE), both in the original image's pixels. Nothing here is as
large as an image times its objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..annotations.annotation import Annotation, Box
from ..annotations.rle import decode_crop, polygon_coverage
from .geometry import Matrix, move_boxes, move_points, straight, translate

_POINTS = 20_000  # about how many pixels of a turned mask are looked at for its box
_SAMPLES = 6  # at most, a side in each cell, where a mask of pixels is turned; two a pixel else


class Mask(Protocol):
    """An object's mask in the original image."""

    def seen(self, matrix: Matrix, size: tuple[int, int]) -> Box | None:
        """The box (xyxy) around what falls into a view (height, width); None if nothing does."""
        ...

    def coverage(self, matrix: Matrix, box: Box, size: int) -> UInt8[np.ndarray, "S S"]:
        """Coverage 0..255 of each cell of a grid over a box in the view."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory held."""
        ...


def mask_of(annotation: Annotation) -> Mask | None:
    """The mask of an annotation, ready to be moved; None without one."""
    if annotation.polygons is not None:
        return Polygons(annotation.polygons)
    return None if annotation.rle is None else Pixels(*decode_crop(annotation.rle))


@dataclass(frozen=True)
class Polygons:
    """A union of polygons."""

    polygons: tuple[np.ndarray, ...]

    def seen(self, matrix: Matrix, size: tuple[int, int]) -> Box | None:
        """The box around the parts of the polygons in the view."""
        corners = np.array(
            [(0, 0), (size[1], 0), (size[1], size[0]), (0, size[0])], dtype=np.float64
        )
        found = []
        for polygon in self.polygons:
            points = move_points(matrix, polygon)
            # what is extreme in the common area is an end of a clipped edge, or a corner of the view
            found += [_clipped_ends(points, size), corners[_contains(points, corners)]]
        ends = np.concatenate(found)
        if len(ends) == 0:
            return None
        (x0, y0), (x1, y1) = ends.min(axis=0), ends.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def coverage(self, matrix: Matrix, box: Box, size: int) -> UInt8[np.ndarray, "S S"]:
        """Exact along sample lines."""
        return polygon_coverage([move_points(matrix, p) for p in self.polygons], box, size)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(p.nbytes for p in self.polygons)


@dataclass(frozen=True)
class Pixels:
    """Whole pixels inside a bounding box."""

    crop: np.ndarray
    """bool [h, w]."""
    x0: int
    y0: int

    def seen(self, matrix: Matrix, size: tuple[int, int]) -> Box | None:
        """The box around the pixels that touch the view (turned: whose middle lies in it)."""
        view = np.array([0.0, 0.0, size[1], size[0]])
        x0, y0, x1, y1 = move_boxes(translate(-self.x0, -self.y0) @ np.linalg.inv(matrix), view)
        top, left = max(int(np.floor(y0)), 0), max(int(np.floor(x0)), 0)
        part = self.crop[top : max(int(np.ceil(y1)), 0), left : max(int(np.ceil(x1)), 0)]
        if not straight(matrix):
            return self._seen_turned(part, left, top, matrix, view)
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        if len(rows) == 0:
            return None
        found = (
            np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            + [left + self.x0, top + self.y0] * 2
        )
        return _inside(move_boxes(matrix, found.astype(np.float64)), view)

    def _seen_turned(
        self, part: np.ndarray, left: int, top: int, matrix: Matrix, view: np.ndarray
    ) -> Box | None:
        step = max(1, int(np.sqrt(part.size / _POINTS)))
        rows, columns = np.nonzero(part[::step, ::step])
        middles = np.stack([columns + 0.5, rows + 0.5], axis=1) * step + (
            left + self.x0,
            top + self.y0,
        )
        middles = move_points(matrix, middles)
        middles = middles[((middles >= view[:2]) & (middles <= view[2:])).all(axis=1)]
        if len(middles) == 0:
            return None
        half = np.abs(matrix[:2, :2]).sum(axis=1) * step / 2
        return _inside(
            np.concatenate([middles.min(axis=0) - half, middles.max(axis=0) + half]), view
        )

    def coverage(self, matrix: Matrix, box: Box, size: int) -> UInt8[np.ndarray, "S S"]:
        """Exact areas, or fine samples where the mask is turned."""
        from_grid = np.linalg.inv(matrix) @ np.array(
            [
                [(box[2] - box[0]) / size, 0, box[0]],
                [0, (box[3] - box[1]) / size, box[1]],
                [0, 0, 1],
            ]
        )
        from_grid = (
            translate(-self.x0, -self.y0) @ from_grid
        )  # cells of the grid -> pixels of the crop
        if not straight(matrix):
            return self._coverage_turned(from_grid, size)
        steps = np.arange(size + 1.0)
        (a, b), (c, d) = from_grid[:2, :2]
        turned = abs(b) > abs(a)
        across = _overlaps(steps * (b if turned else a) + from_grid[0, 2], self.crop.shape[1])
        down = _overlaps(steps * (c if turned else d) + from_grid[1, 2], self.crop.shape[0])
        covered = down @ self.crop.astype(np.float32) @ across.T
        return ((covered.T if turned else covered) * 255 + 0.5).astype(np.uint8)

    def _coverage_turned(self, from_grid: Matrix, size: int) -> np.ndarray:
        samples = int(
            np.clip(np.ceil(2 * np.linalg.norm(from_grid[:2, :2], axis=0).max()), 1, _SAMPLES)
        )
        fine = size * samples
        padded = np.zeros(
            (self.crop.shape[0] + 2, self.crop.shape[1] + 2), np.uint8
        )  # so that the border fades to nothing
        padded[1:-1, 1:-1] = self.crop * np.uint8(255)
        coefficients = (translate(1, 1) @ from_grid @ np.diag([1 / samples, 1 / samples, 1]))[
            :2
        ].reshape(-1)
        turned = Image.fromarray(padded).transform(
            (fine, fine),
            Image.Transform.AFFINE,
            tuple(coefficients),
            resample=Image.Resampling.BILINEAR,
        )
        return np.asarray(turned.reduce(samples))

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.crop.nbytes


def _overlaps(edges: np.ndarray, pixels: int) -> np.ndarray:
    """For each cell between two edges the share that each pixel has of it: [cells, pixels]."""
    low, high = (
        np.minimum(edges[:-1], edges[1:])[:, None],
        np.maximum(edges[:-1], edges[1:])[:, None],
    )
    pixel = np.arange(pixels)
    common = np.minimum(high, pixel + 1) - np.maximum(low, pixel)
    return (np.maximum(common, 0) / (high - low)).astype(np.float32)


def _inside(box: np.ndarray, view: np.ndarray) -> Box | None:
    x0, y0 = np.maximum(box[:2], view[:2])
    x1, y1 = np.minimum(box[2:], view[2:])
    return (float(x0), float(y0), float(x1), float(y1)) if x1 > x0 and y1 > y0 else None


def _clipped_ends(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Both ends of each edge of a polygon after clipping to a view (Liang and Barsky 1984); edges outside give none."""
    delta = np.roll(points, -1, axis=0) - points
    enter, leave = np.zeros(len(points)), np.ones(len(points))
    for axis, limit in ((0, size[1]), (1, size[0])):
        start, step = points[:, axis], delta[:, axis]
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = np.sort(np.stack([-start / step, (limit - start) / step]), axis=0)
        parallel = step == 0
        inside = (start >= 0) & (start <= limit)
        enter = np.where(parallel, np.where(inside, enter, 2.0), np.maximum(enter, low))
        leave = np.where(parallel, leave, np.minimum(leave, high))
    kept = enter <= leave
    return np.concatenate(
        [
            points[kept] + enter[kept, None] * delta[kept],
            points[kept] + leave[kept, None] * delta[kept],
        ]
    )


def _contains(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points lie inside, by the number of edges to their right."""
    after = np.roll(polygon, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    crosses = (polygon[:, 1] > y) != (after[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = polygon[:, 0] + (y - polygon[:, 1]) * (after[:, 0] - polygon[:, 0]) / (
            after[:, 1] - polygon[:, 1]
        )
    return (crosses & (x < at)).sum(axis=1) % 2 == 1
