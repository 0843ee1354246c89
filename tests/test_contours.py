"""Masks and their polygons, compared with pycocotools and pixel counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskrcnn.annotations import rle
from maskrcnn.annotations.contours import ellipse, fill, holes_by_part, join, simplify, trace, union

masks = (
    st.tuples(st.integers(1, 12), st.integers(1, 12))
    .flatmap(lambda size: arrays(bool, size))
    .filter(lambda mask: mask.any())
)


def area(ring: np.ndarray) -> float:
    after = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * after[:, 1] - after[:, 0] * ring[:, 1]).sum()) / 2


def filled_by_pycocotools(rings: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    from pycocotools import mask

    parts = [mask.frPyObjects([ring.reshape(-1).tolist()], *size)[0] for ring in rings]
    return np.sum([mask.decode(p) for p in parts], axis=0) % 2 == 1


def parts_by_flooding(mask: np.ndarray) -> int:
    """Parts of pixels that share an edge, by a slow search."""
    left = set(zip(*np.nonzero(mask), strict=True))
    count = 0
    while left:
        count += 1
        pending = [left.pop()]
        while pending:
            y, x = pending.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            pending += near
    return count


@settings(deadline=None, max_examples=150)
@given(masks)
def test_traced_polygons_fill_to_the_same_pixels(mask: np.ndarray):
    size = (mask.shape[0], mask.shape[1])
    rings = trace(mask)
    assert (filled_by_pycocotools(rings, size) == mask).all()
    assert fill([join(rings)], size) == rle.encode(mask)


@settings(deadline=None, max_examples=100)
@given(masks)
def test_outer_polygons_run_clockwise_and_holes_against(mask: np.ndarray):
    areas = [area(ring) for ring in trace(mask)]
    assert sum(areas) == mask.sum()
    assert sum(a > 0 for a in areas) == parts_by_flooding(mask)


@settings(deadline=None, max_examples=50)
@given(masks)
def test_a_joined_polygon_covers_the_same_pixels_as_the_mask(mask: np.ndarray):
    """The winding rule of training: a polygon that winds twice, or not at all, inside the mask would differ."""
    size = max(mask.shape)
    joined = join(trace(mask))
    square = np.zeros((size, size), bool)
    square[: mask.shape[0], : mask.shape[1]] = mask
    assert (rle.polygon_coverage([joined], (0, 0, size, size), size) == square * 255).all()


def test_an_empty_mask_has_no_polygon():
    assert trace(np.zeros((3, 4), bool)) == []


def test_only_corners_are_listed():
    (ring,) = trace(np.ones((3, 5), bool))
    assert sorted(map(tuple, ring.tolist())) == [(0, 0), (0, 3), (5, 0), (5, 3)]


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_a_simplified_polygon_stays_near_with_fewer_points(tolerance: float):
    y, x = np.mgrid[:80, :90]
    mask = ((x - 44) / 35) ** 2 + ((y - 40) / 28) ** 2 < 1
    (ring,) = trace(mask)
    simple = simplify(ring, tolerance)
    assert len(simple) < len(ring) / 3
    again = rle.decode(fill([simple], (80, 90)))
    assert (again & mask).sum() / (again | mask).sum() > 1 - 0.035 * tolerance


def test_parts_of_one_mask_are_united():
    first, second = np.zeros((2, 6, 7), bool)
    first[1:4, 1:5], second[2:6, 3:7] = True, True
    uncompressed = {"size": [6, 7], "counts": rle.counts(rle.encode(second)).tolist()}
    assert union([rle.encode(first), uncompressed], (6, 7)) == rle.encode(first | second)
    square = np.array([[1.0, 1.0], [5.0, 1.0], [5.0, 4.0], [1.0, 4.0]])
    assert fill([square, square + 1], (8, 8)) == rle.encode(
        np.pad(first, ((0, 2), (0, 1))) | np.pad(first, ((1, 1), (1, 0)))[:8, :8]
    )


@pytest.mark.parametrize("radii", [(0.5, 0.5), (20.0, 9.0), (300.0, 120.0)])
def test_an_ellipse_is_approximated_to_a_twentieth_of_a_pixel(radii: tuple[float, float]):
    points = ellipse((7.0, 3.0), radii, 0.4)
    middles = (points + np.roll(points, -1, axis=0)) / 2 - (7.0, 3.0)
    turned = middles @ np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    inward = 1 - np.hypot(*(turned / radii).T)
    assert (inward * max(radii)).max() < 0.051
    assert points[0] == pytest.approx(
        (7 + radii[0] * np.cos(0.4), 3 + radii[0] * np.sin(0.4))
    )  # clockwise on the screen


@given(masks)
@settings(deadline=None)
def test_holes_belong_to_the_part_around_them(mask: np.ndarray):
    """Also where parts lie in holes of others, and touch at corners."""
    parts = holes_by_part(trace(mask))
    assert sum(1 + len(holes) for _, holes in parts) == len(trace(mask))
    together = np.zeros(mask.shape, int)
    for exterior, holes in parts:
        part = rle.decode(fill([exterior], mask.shape)).astype(int)
        for hole in holes:
            part -= rle.decode(fill([hole], mask.shape)).astype(int)
        assert part.min() >= 0  # each hole is inside its part
        assert parts_by_flooding(part.astype(bool)) == 1
        together += part
    assert (together == mask).all()
