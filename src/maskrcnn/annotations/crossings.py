"""Finds which of many polygons cross themselves, in one vectorized pass over all of them.

In:  polygons [n, 2] with any number of points, open or closed, in either orientation.
Out: an array with one bool for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

MOST_PAIRS = 20_000_000
"""Pairs of edges of one polygon that are compared; a polygon with more is not searched."""

_PAIRS = 2_000_000  # pairs of edges compared at a time


def self_crossing(
    polygons: Sequence[Float[np.ndarray, "_ 2"]],
) -> tuple[Bool[np.ndarray, "P"], Bool[np.ndarray, "P"]]:
    """Returns for each polygon whether two of its edges cross, each in its interior.

    A polygon that only touches itself, as around a hole, does not cross itself. The second array
    says which polygons were searched: those with at most `MOST_PAIRS` pairs of edges that are above
    each other.

    The edges of all polygons, placed side by side along x, are sorted by their left ends. Each edge
    is compared with those that begin before it ends.
    """
    crossed = np.zeros(len(polygons), bool)
    if not polygons:
        return crossed, crossed
    start, end, first = _edges(polygons)
    owner = np.repeat(np.arange(len(polygons)), [len(p) for p in polygons])

    # move the polygons apart along x
    low = np.minimum(start, end)
    high = np.maximum(start, end)
    left = np.minimum.reduceat(low[:, 0], first)
    right = np.maximum.reduceat(high[:, 0], first)
    shift = np.cumsum(right - left + 1) - right

    # sort the edges by their left ends, and count how many begin before each ends
    order = np.argsort(low[:, 0] + shift[owner])
    start, end, low, high, owner = (array[order] for array in (start, end, low, high, owner))
    left_ends = low[:, 0] + shift[owner]
    right_ends = high[:, 0] + shift[owner]
    num_begun = np.searchsorted(left_ends, right_ends, side="right")
    num_rivals = np.maximum(num_begun - np.arange(len(left_ends)) - 1, 0)
    is_searched = np.bincount(owner, num_rivals, len(polygons)) <= MOST_PAIRS
    num_rivals[~is_searched[owner]] = 0

    for one, other in _pairs(num_rivals):
        near = (low[other, 1] < high[one, 1]) & (high[other, 1] > low[one, 1])
        one, other = one[near], other[near]
        crosses = _cross_inside(start[one], end[one], start[other], end[other])
        crossed[owner[one[crosses]]] = True
    return crossed, is_searched


def _pairs(num_rivals: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each edge with the `num_rivals` edges that follow it, `_PAIRS` at a time."""
    total = np.r_[0, np.cumsum(num_rivals)]
    begin = 0
    while begin < len(num_rivals):
        stop = max(begin + 1, int(np.searchsorted(total, total[begin] + _PAIRS, side="right")) - 1)
        one = np.repeat(np.arange(begin, stop), num_rivals[begin:stop])
        yield one, one + 1 + np.arange(len(one)) - (total[one] - total[begin])
        begin = stop


def _edges(polygons: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns start and end of every edge, and the index of each polygon's first edge."""
    start = np.concatenate(list(polygons))
    lengths = np.array([len(p) for p in polygons])
    last = np.cumsum(lengths) - 1
    first = last - lengths + 1
    end = np.empty_like(start)
    end[:-1] = start[1:]
    end[last] = start[first]
    return start, end, first


def _cross_inside(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Returns whether the segments ab and cd meet in a point that is an end of neither."""
    ab = b - a
    cd = d - c
    return (_cross(ab, c - a) * _cross(ab, d - a) < 0) & (_cross(cd, a - c) * _cross(cd, b - c) < 0)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
