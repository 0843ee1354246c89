"""Left and right keypoints that look swapped.

In: the keypoints of all objects of a category, and which keypoint is the mirror image of which. Out: for each object what contradicts the rest, or nothing.

Nobody knows from one object whether it shows its face or its back, but the data set does. Every pair (left and right knee) of an object votes: +1 if
its left keypoint stands at the image's right, as in someone who faces the camera, else -1; pairs one above the other do not vote.

1. A pair against its object. From all objects we know how often a pair votes against the majority of the other pairs: shoulders hardly ever, ankles
   often. Where less than 2 % of the objects do, those that do are probably swapped.
2. An object against the others. From all objects we know how often the votes are +1 when a certain keypoint is labeled, or is not: someone with a nose
   faces us. An object whose votes agree among themselves, but with less than 3 % of those that have or lack the same keypoint, is probably swapped.

Rates are counted over the same data with Laplace's rule, the object itself left out; below 30 objects nothing is said. A data set with all sides
swapped agrees with itself: that cannot be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

ENOUGH = 30
"""Objects from which rates are counted."""
_APART = 0.1  # of an object's extent: pairs closer than that along x do not vote
_PAIR_RATE, _WHOLE_RATE = 0.02, 0.03


def suspicious(
    keypoints: Float[np.ndarray, "N J 3"], mirrored: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """Objects whose left and right contradict those of the others.

    Args:
        keypoints: x, y, visibility (0 unlabeled).
        mirrored: for each keypoint the one that it becomes in a mirror image.

    Returns:
        For each suspicious row the keypoints, on the first side, of the pairs that look swapped.
    """
    pairs = [(a, b) for a, b in enumerate(mirrored) if a < b]
    if len(keypoints) < ENOUGH or not pairs:
        return {}
    votes = _votes(keypoints, pairs)
    against = _pair_rate(votes) < _PAIR_RATE
    found = {
        int(row): tuple(pairs[p][0] for p in np.flatnonzero(against[row]))
        for row in np.flatnonzero(against.any(axis=1))
    }
    for row in np.flatnonzero(_whole_rate(votes, keypoints[:, :, 2] > 0) < _WHOLE_RATE):
        found.setdefault(int(row), tuple(pairs[p][0] for p in np.flatnonzero(votes[row])))
    return dict(sorted(found.items()))


def _votes(
    keypoints: Float[np.ndarray, "N J 3"], pairs: Sequence[tuple[int, int]]
) -> Int64[np.ndarray, "N P"]:
    """+1, -1, or 0 where a keypoint is missing or the two stand one above the other."""
    labeled = keypoints[:, :, 2] > 0
    points = keypoints[:, :, :2]
    highest = np.where(labeled[:, :, None], points, -np.inf).max(axis=1)
    lowest = np.where(labeled[:, :, None], points, np.inf).min(axis=1)
    extent = np.where(labeled.any(axis=1), (highest - lowest).max(axis=1), 0)
    x = np.where(labeled, points[:, :, 0], np.nan)
    apart = np.nan_to_num(np.stack([x[:, a] - x[:, b] for a, b in pairs], axis=1))
    return np.where(np.abs(apart) > _APART * extent[:, None], np.sign(apart), 0).astype(np.int64)


def _pair_rate(votes: Int64[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
    """How often other objects do what this pair does: vote against the majority of the other pairs; 1 where it does not."""
    others = np.sign(votes.sum(axis=1, keepdims=True) - votes)
    judged, against = votes * others != 0, votes * others < 0
    rates = against.sum(axis=0) / (
        judged.sum(axis=0) + 1
    )  # itself left out, Laplace: (against - 1 + 1) / (judged - 1 + 2)
    return np.where(against & (judged.sum(axis=0) > ENOUGH), rates, 1.0)


def _whole_rate(votes: Int64[np.ndarray, "N P"], labeled: np.ndarray) -> Float[np.ndarray, "N"]:
    """How often other objects with, or without, some keypoint have this one's majority: the least over the keypoints; 1 where the votes disagree."""
    majority = np.sign(votes.sum(axis=1))
    united = (np.abs(votes.sum(axis=1)) == np.abs(votes).sum(axis=1)) & (majority != 0)
    rates = np.ones(len(votes))
    for present in (*labeled.T, np.ones(len(votes), bool)):
        for value in (True, False):
            rows = united & (present == value)
            plus = (majority[rows] > 0).sum()
            minus = rows.sum() - plus
            if rows.sum() <= ENOUGH:
                continue
            own = np.where(majority[rows] > 0, plus, minus)
            rates[rows] = np.minimum(rates[rows], own / (rows.sum() + 1))  # as above
    return rates
