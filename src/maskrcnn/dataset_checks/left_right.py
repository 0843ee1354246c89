"""Left and right keypoints that look swapped.

In: the keypoints of all objects of a category, and the mirror keypoint of each.
Out: for each suspicious object, the keypoint pairs that contradict the other objects.

A single object does not show whether it is seen from the front or from behind, but the whole data
set does. Every pair (left and right knee) of an object votes: +1 if its left keypoint is further
right in the image, as in a person facing the camera, else -1. Pairs that are vertically aligned do
not vote.

1. A pair against its own object. Over all objects, count how often a pair votes against the
   majority of the other pairs: shoulders hardly ever, ankles often. Where fewer than 2 % of the
   objects do so, those that do are probably swapped.
2. An object against the others. Over all objects, count how often the votes are +1 when a certain
   keypoint is labeled, or is not: a person with a labeled nose faces the camera. An object is
   probably swapped if its votes agree with each other, but with fewer than 3 % of the objects that
   have or lack the same keypoint.

Rates are counted on the same data with Laplace's rule, leaving out the object itself. Below 30
objects nothing is reported. A data set in which all sides are swapped is consistent, so this check
cannot detect it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

ENOUGH = 30
"""Rates are counted from at least this many objects."""
_APART = 0.1  # of an object's extent: pairs closer than that along x do not vote
_PAIR_RATE = 0.02  # of rule 1
_WHOLE_RATE = 0.03  # of rule 2


def find_swapped(
    keypoints: Float[np.ndarray, "N J 3"], mirrored: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """Finds objects whose left and right contradict the other objects.

    Args:
        keypoints: x, y, visibility (0 unlabeled) of each keypoint.
        mirrored: for each keypoint, the one that it becomes in a mirror image.

    Returns:
        For each suspicious row, the pairs that look swapped; each pair is named by its
        lower keypoint index.
    """
    pairs = [(a, b) for a, b in enumerate(mirrored) if a < b]
    if len(keypoints) < ENOUGH or not pairs:
        return {}

    votes = _votes(keypoints, pairs)
    against = _pair_rate(votes) < _PAIR_RATE
    swapped = {
        int(row): tuple(pairs[p][0] for p in np.flatnonzero(against[row]))
        for row in np.flatnonzero(against.any(axis=1))
    }

    labeled = keypoints[:, :, 2] > 0
    for row in np.flatnonzero(_whole_rate(votes, labeled) < _WHOLE_RATE):
        swapped.setdefault(int(row), tuple(pairs[p][0] for p in np.flatnonzero(votes[row])))
    return dict(sorted(swapped.items()))


def _votes(
    keypoints: Float[np.ndarray, "N J 3"], pairs: Sequence[tuple[int, int]]
) -> Int64[np.ndarray, "N P"]:
    """+1 or -1; 0 where a keypoint is missing or the two are vertically aligned."""
    labeled = keypoints[:, :, 2] > 0
    points = keypoints[:, :, :2]
    highest = np.where(labeled[:, :, None], points, -np.inf).max(axis=1)
    lowest = np.where(labeled[:, :, None], points, np.inf).min(axis=1)
    extent = np.where(labeled.any(axis=1), (highest - lowest).max(axis=1), 0)

    x = np.where(labeled, points[:, :, 0], np.nan)
    apart = np.nan_to_num(np.stack([x[:, a] - x[:, b] for a, b in pairs], axis=1))
    return np.where(np.abs(apart) > _APART * extent[:, None], np.sign(apart), 0).astype(np.int64)


def _pair_rate(votes: Int64[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
    """The share of other objects in which the pair also votes against the majority.

    The majority is that of the other pairs. 1 where the pair does not vote against it.
    """
    others = np.sign(votes.sum(axis=1, keepdims=True) - votes)
    against = votes * others < 0
    num_voting = (votes * others != 0).sum(axis=0)
    # Laplace's rule, the object itself left out: (against - 1 + 1) / (voting - 1 + 2)
    rates = against.sum(axis=0) / (num_voting + 1)
    return np.where(against & (num_voting > ENOUGH), rates, 1.0)


def _whole_rate(votes: Int64[np.ndarray, "N P"], labeled: np.ndarray) -> Float[np.ndarray, "N"]:
    """The share of comparable objects with the same majority as this one.

    Comparable objects have, or lack, the same keypoint. The smallest share over the keypoints
    counts; 1 where the votes of an object disagree with each other.
    """
    majority = np.sign(votes.sum(axis=1))
    united = (np.abs(votes.sum(axis=1)) == np.abs(votes).sum(axis=1)) & (majority != 0)
    rates = np.ones(len(votes))

    for present in (*labeled.T, np.ones(len(votes), bool)):
        for value in (True, False):
            rows = united & (present == value)
            if rows.sum() <= ENOUGH:
                continue
            plus = (majority[rows] > 0).sum()
            minus = rows.sum() - plus
            same = np.where(majority[rows] > 0, plus, minus)
            rates[rows] = np.minimum(rates[rows], same / (rows.sum() + 1))  # Laplace, as above
    return rates
