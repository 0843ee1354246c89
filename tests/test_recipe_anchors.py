"""Anchors fitted to objects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from maskrcnn.recipe.fit_anchors import fit_anchors, mean_overlap

STRIDES = (4, 8, 16, 32, 64)
USUAL = (((16.0,), (32.0,), (64.0,), (128.0,), (256.0,)), (0.5, 1.0, 2.0))


def objects(
    median: float, spread: float, ratio: float, count: int = 300, seed: int = 0
) -> np.ndarray:
    random = np.random.default_rng(seed)
    size, shape = (
        median * np.exp(random.normal(0, spread, count)),
        np.sqrt(ratio * np.exp(random.normal(0, 0.2, count))),
    )
    return np.stack([size / shape, size * shape], axis=1)


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_the_mean_overlap_equals_that_of_a_slow_loop() -> None:
    sides, (sizes, ratios) = objects(30, 0.6, 1.5, 20), USUAL
    total = 0.0
    for w, h in sides:
        best = 0.0
        for stride, (size,), ratio in (
            (s, z, r) for (s, z), r in itertools.product(zip(STRIDES, sizes, strict=True), ratios)
        ):
            aw, ah = size / ratio**0.5, size * ratio**0.5
            offsets = [(dx * stride / 3, dy * stride / 3) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
            anchors = [
                ((w - aw) / 2 + x, (h - ah) / 2 + y, (w + aw) / 2 + x, (h + ah) / 2 + y)
                for x, y in offsets
            ]
            best = max(best, float(np.mean([iou((0, 0, w, h), anchor) for anchor in anchors])))
        total += best / len(sides)
    assert mean_overlap(sides, STRIDES, *USUAL) == pytest.approx(total)


def test_fitted_anchors_overlap_more_where_objects_are_unusual() -> None:
    sides = objects(24, 0.3, 4.0)
    sizes, ratios, overlap = fit_anchors(sides, STRIDES, usual=USUAL)
    assert overlap > mean_overlap(sides, STRIDES, *USUAL) + 0.05
    assert ratios[1] == pytest.approx(4.0, rel=0.1)
    assert [len(level) for level in sizes] == [1] * 5


def test_the_usual_anchors_stay_where_they_fit() -> None:
    sides = np.concatenate(
        [objects(size, 0.3, ratio) for size in (16, 32, 64, 128, 256) for ratio in (0.5, 1, 2)]
    )
    assert fit_anchors(sides, STRIDES, usual=USUAL)[:2] == USUAL


def test_images_turned_by_right_angles_have_ratios_that_mirror_each_other() -> None:
    _, ratios, _ = fit_anchors(objects(24, 0.3, 3.0), STRIDES, turned=True)
    assert ratios[0] * ratios[2] == pytest.approx(1, abs=0.02)


def test_a_single_level_gets_all_its_sizes() -> None:
    sizes, _, _ = fit_anchors(objects(100, 0.6, 1.0), (16,), per_level=5)
    assert [len(level) for level in sizes] == [5]
    assert list(sizes[0]) == sorted(sizes[0])
