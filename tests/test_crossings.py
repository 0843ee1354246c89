"""Self-crossing polygons are detected as by a slow search over all pairs of edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.annotations import crossings
from maskrcnn.annotations.crossings import self_crossing

SQUARE = [(0, 0), (4, 0), (4, 4), (0, 4)]
POLYGONS = {
    "square": (SQUARE, False),
    "closed square": ([*SQUARE, (0, 0)], False),
    "bow tie": ([(0, 0), (4, 4), (4, 0), (0, 4)], True),
    "hole, joined by one line there and back": (
        [*SQUARE, (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1), (0, 0)],
        False,
    ),
    "two points": ([(0, 0), (1, 1)], False),
    "a point given twice": ([(0, 0), (0, 0), (4, 0), (4, 4)], False),
    "star in one line": ([(0, 3), (10, 3), (2, 9), (5, 0), (8, 9)], True),
}


def crosses(points: np.ndarray) -> bool:
    """Pair by pair."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    edges = [(points[i], points[(i + 1) % len(points)]) for i in range(len(points))]
    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for i, (a, b) in enumerate(edges)
        for c, d in edges[i + 1 :]
    )


@pytest.mark.parametrize("name", POLYGONS)
def test_known_polygons(name: str):
    points, wanted = POLYGONS[name]
    assert self_crossing([np.array(points, float)])[0].tolist() == [wanted]


polygons = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7), max_size=6
)


@given(polygons)
@settings(max_examples=150, deadline=None)
def test_all_at_once_equals_pair_by_pair(drawn: list[list[tuple[int, int]]]):
    given_points = [np.array(points, float) for points in drawn]
    assert self_crossing(given_points)[0].tolist() == [crosses(p) for p in given_points]


def test_many_pairs_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    drawn = [
        rng.uniform(0, 100, (int(rng.integers(3, 9)), 2)) + 1000 * rng.random() for _ in range(300)
    ]
    whole, _ = self_crossing(drawn)
    monkeypatch.setattr(crossings, "_PAIRS", 37)
    assert 0 < whole.sum() < len(whole)
    assert (self_crossing(drawn)[0] == whole).all()
