"""Which of many polygons cross themselves, found for all at once.

In: polygons [n, 2] of any number of points, open or closed, of any orientation. Out: an array with one value for each. No loop over polygons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

_PAIRS = 2_000_000  # of edges, compared at a time


def self_crossing(polygons: Sequence[Float[np.ndarray, "_ 2"]]) -> Bool[np.ndarray, "P"]:
    """Whether two edges of a polygon cross, each in its inside. A polygon that only touches itself, as around a hole, does not cross itself.

    The edges of all polygons, laid side by side along x, are sorted by their left ends; an edge is compared with those that begin before it ends.
    """
    found = np.zeros(len(polygons), bool)
    if not polygons:
        return found
    start, end, first = _edges(polygons)
    lengths = np.array([len(p) for p in polygons])
    owner = np.repeat(np.arange(len(polygons)), lengths)
    low, high = np.minimum(start, end), np.maximum(start, end)
    left, right = np.minimum.reduceat(low[:, 0], first), np.maximum.reduceat(high[:, 0], first)
    shift = np.cumsum(right - left + 1) - right
    order = np.argsort(low[:, 0] + shift[owner])
    start, end, low, high, owner = start[order], end[order], low[order], high[order], owner[order]
    begins = low[:, 0] + shift[owner]
    rivals = (
        np.searchsorted(begins, high[:, 0] + shift[owner], side="right")
        - np.arange(len(begins))
        - 1
    )
    for one, other in _pairs(np.maximum(rivals, 0)):
        near = (low[other, 1] < high[one, 1]) & (high[other, 1] > low[one, 1])
        one, other = one[near], other[near]
        found[owner[one[_cross_inside(start[one], end[one], start[other], end[other])]]] = True
    return found


def _pairs(rivals: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each edge with the `rivals` that follow it, some millions of pairs at a time."""
    total = np.r_[0, np.cumsum(rivals)]
    begin = 0
    while begin < len(rivals):
        stop = max(begin + 1, int(np.searchsorted(total, total[begin] + _PAIRS, side="right")) - 1)
        one = np.repeat(np.arange(begin, stop), rivals[begin:stop])
        yield one, one + 1 + np.arange(len(one)) - (total[one] - total[begin])
        begin = stop


def _edges(polygons: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start and end of every edge of every polygon, and the place of each polygon's first."""
    start = np.concatenate(list(polygons))
    lengths = np.array([len(p) for p in polygons])
    last = np.cumsum(lengths) - 1
    first = last - lengths + 1
    end = np.empty_like(start)
    end[:-1] = start[1:]
    end[last] = start[first]
    return start, end, first


def _cross_inside(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Whether the segments ab and cd meet in a point that is an end of neither."""
    ab, cd = b - a, d - c
    return (_cross(ab, c - a) * _cross(ab, d - a) < 0) & (_cross(cd, a - c) * _cross(cd, b - c) < 0)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
