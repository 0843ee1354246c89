"""Anchors fitted to the objects of a data set.

In: sides of objects in model-input pixels, the strides of the levels. Out: a size for each level and three ratios.

The sizes form a ladder base * growth^level, and the ratios are those of the data or the usual ones; of all candidates the one is taken whose best
anchor overlaps the objects most on average. An object's center lies anywhere between two cells, so the overlap is averaged over that: this is what
keeps small anchors off coarse levels, where they miss what lies between the cells.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Float

_BASES = (8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)
_GROWTHS = (1.5, 1.75, 2.0)
_OBJECTS = 600  # looked at, evenly over their sizes
_WIDEST = 5.0  # height / width
_LEAST_SPREAD = (
    1.3  # of the ratios: boxes to come vary more than three quantiles of those that are here
)

Sizes = tuple[tuple[float, ...], ...]


def fit_anchors(
    sides: Float[np.ndarray, "N 2"],
    strides: tuple[int, ...],
    per_level: int = 1,
    turned: bool = False,
    usual: tuple[Sizes, tuple[float, ...]] | None = None,
) -> tuple[Sizes, tuple[float, ...], float]:
    """Sizes (roots of the area, a tuple for each level), ratios (height / width), and the mean overlap (IoU) of the objects with their best anchor.

    Args:
        sides: (width, height) of the objects, model-input pixels.
        strides: of the levels.
        per_level: sizes on each level.
        turned: training turns images by right angles, so that heights and widths change places.
        usual: sizes and ratios to keep where nothing fits better by a hundredth.
    """
    area = np.argsort(sides.prod(axis=1))
    sides = np.maximum(
        sides[area[np.linspace(0, len(area) - 1, min(len(area), _OBJECTS)).round().astype(int)]],
        1.0,
    )
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
    """The mean IoU of objects with their best anchor, where centers lie anywhere between the cells."""
    anchors = [
        (size / ratio**0.5, size * ratio**0.5, stride)
        for stride, level in zip(strides, sizes, strict=True)
        for size in level
        for ratio in ratios
    ]
    width, height, stride = np.array(anchors).T
    shift = (
        np.array([[dx, dy] for dx in (-1, 0, 1) for dy in (-1, 0, 1)])[:, None] / 3
    )  # the middles of nine equal parts of a cell
    overlap = 1.0
    for axis, anchor in ((0, width), (1, height)):
        side, off = sides[:, axis, None, None], np.abs(shift[:, :, axis] * stride).T  # [A, 9]
        low, high = np.minimum(side, anchor[:, None]), np.maximum(side, anchor[:, None])
        overlap = overlap * np.clip((low + high) / 2 - off, 0, low)
    union = sides.prod(axis=1)[:, None, None] + (width * height)[:, None] - overlap
    return float((overlap / union).mean(axis=2).max(axis=1).mean())


def _ratios(sides: Float[np.ndarray, "N 2"], turned: bool) -> tuple[float, ...]:
    """Three quantiles of height / width, in the middles of the thirds."""
    ratio = np.log(sides[:, 1] / sides[:, 0])
    if turned:
        ratio = np.concatenate([ratio, -ratio])
    low, middle, high = np.quantile(ratio, (1 / 6, 1 / 2, 5 / 6))
    low, high = min(low, middle - np.log(_LEAST_SPREAD)), max(high, middle + np.log(_LEAST_SPREAD))
    return tuple(
        float(round(np.exp(np.clip(r, -np.log(_WIDEST), np.log(_WIDEST))), 2))
        for r in (low, middle, high)
    )
