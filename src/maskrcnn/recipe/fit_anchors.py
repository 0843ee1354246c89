"""Anchors fitted to the objects of a data set.

In: sides of objects in model-input pixels, the strides of the levels. Out: a size for each level
and three ratios.

Candidate sizes are base * growth^level; candidate ratios are those of the data or the usual ones.
The candidate wins whose best anchors have the highest mean IoU with the objects. An object's center
lies anywhere between two cells, so the IoU is averaged over that. This keeps small anchors off
coarse levels, where they would miss objects between the cells.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Float

_BASES = (8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)
_GROWTHS = (1.5, 1.75, 2.0)
_OBJECTS = 600  # objects used, evenly over their sizes
_WIDEST = 5.0  # largest height / width, and its inverse the smallest
# Least factor between neighboring ratios: future boxes vary more than three quantiles of these.
_LEAST_SPREAD = 1.3

Sizes = tuple[tuple[float, ...], ...]


def fit_anchors(
    sides: Float[np.ndarray, "N 2"],
    strides: tuple[int, ...],
    per_level: int = 1,
    turned: bool = False,
    usual: tuple[Sizes, tuple[float, ...]] | None = None,
) -> tuple[Sizes, tuple[float, ...], float]:
    """Fits sizes and ratios of anchors to objects.

    Args:
        sides: (width, height) of the objects, model-input pixels.
        strides: strides of the levels, in pixels.
        per_level: number of sizes on each level.
        turned: training rotates images by right angles, which exchanges widths and heights.
        usual: sizes and ratios to keep unless others raise the mean IoU by more than 0.01.

    Returns:
        Sizes (square roots of the area, a tuple for each level), ratios (height / width), and the
        mean IoU of the objects with their best anchor.
    """
    by_area = np.argsort(sides.prod(axis=1))
    spread = np.linspace(0, len(by_area) - 1, min(len(by_area), _OBJECTS)).round().astype(int)
    sides = np.maximum(sides[by_area[spread]], 1.0)

    best = (*usual, mean_overlap(sides, strides, *usual) + 0.01) if usual else ((), (), -1.0)
    for base, growth, ratios in product(
        _BASES, _GROWTHS, (_ratios(sides, turned), (0.5, 1.0, 2.0))
    ):
        ladder = [round(base * growth**k, 1) for k in range(len(strides) * per_level)]
        sizes = tuple(
            tuple(ladder[i * per_level : (i + 1) * per_level]) for i in range(len(strides))
        )
        overlap = mean_overlap(sides, strides, sizes, ratios)
        if overlap > best[2]:
            best = (sizes, ratios, overlap)

    return (*best[:2], mean_overlap(sides, strides, *best[:2]))


def mean_overlap(
    sides: Float[np.ndarray, "N 2"],
    strides: tuple[int, ...],
    sizes: Sizes,
    ratios: tuple[float, ...],
) -> float:
    """The mean IoU of objects with their best anchor, averaged over the object's offset from a
    cell.
    """
    anchors = [
        (size / ratio**0.5, size * ratio**0.5, stride)
        for stride, level in zip(strides, sizes, strict=True)
        for size in level
        for ratio in ratios
    ]
    width, height, stride = np.array(anchors).T

    # Along each axis, the overlap of a centered object, and of one a third of a cell beside it.
    overlaps = []
    for side, anchor in ((sides[:, :1], width), (sides[:, 1:], height)):
        low = np.minimum(side, anchor)
        high = np.maximum(side, anchor)
        overlaps.append((low, np.clip((low + high) / 2 - stride * (1 / 3), 0, low)))

    # The object's center is in the middle of one of nine equal parts of a cell.
    areas = sides.prod(axis=1)[:, None] + width * height
    iou = [
        [across * down / (areas - across * down) for down in overlaps[1]] for across in overlaps[0]
    ]
    of_parts = [iou[dx != 0][dy != 0] for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    return float((sum(of_parts) / len(of_parts)).max(axis=1).mean())


def _ratios(sides: Float[np.ndarray, "N 2"], turned: bool) -> tuple[float, ...]:
    """Three quantiles of height / width: the middles of the thirds."""
    ratio = np.log(sides[:, 1] / sides[:, 0])
    if turned:
        ratio = np.concatenate([ratio, -ratio])
    low, middle, high = np.quantile(ratio, (1 / 6, 1 / 2, 5 / 6))
    low = min(low, middle - np.log(_LEAST_SPREAD))
    high = max(high, middle + np.log(_LEAST_SPREAD))
    return tuple(
        float(round(np.exp(np.clip(r, -np.log(_WIDEST), np.log(_WIDEST))), 2))
        for r in (low, middle, high)
    )
