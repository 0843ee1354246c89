"""RLE against pycocotools, coverage against a slow, finely sampled image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw
from pycocotools import mask as oracle

from maskrcnn.annotations import rle

masks = arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=150, deadline=None)
@given(masks)
def test_encoding_is_byte_equal_to_pycocotools_and_decodes_back(mask):
    ours = rle.encode(mask)
    theirs = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    assert (rle.decode(ours) == mask).all()
    assert (rle.decode(theirs) == mask).all()
    assert (rle.decode({"size": ours["size"], "counts": rle.counts(ours).tolist()}) == mask).all()
    assert rle.area(ours) == mask.sum()
    x, y, w, h = oracle.toBbox(theirs)
    assert rle.bbox(ours) == ((x, y, x + w, y + h) if mask.any() else (0, 0, 0, 0))


def test_long_runs_and_large_differences_are_byte_equal_to_pycocotools():
    for shape, part in (
        ((3000, 2000), np.s_[7:2990, 5:1999]),
        ((2000, 3000), np.s_[:, 1000:1001]),
        ((1500, 1500), np.s_[100:1400:3, 3:1490:2]),
    ):
        mask = np.zeros(shape, bool)
        mask[part] = True
        assert (
            rle.encode(mask)["counts"]
            == oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        )


@settings(max_examples=150, deadline=None)
@given(masks, st.integers(-5, 8), st.integers(-5, 8), st.integers(1, 8), st.integers(1, 8))
def test_a_crop_is_encoded_like_the_image_that_holds_it(crop, x0, y0, height, width):
    large = np.zeros((height + 40, width + 40), bool)
    large[y0 + 20 : y0 + 20 + crop.shape[0], x0 + 20 : x0 + 20 + crop.shape[1]] = crop
    image = large[20 : 20 + height, 20 : 20 + width]
    assert rle.encode_crop(crop, x0, y0, (height, width)) == rle.encode(image)


@settings(max_examples=100, deadline=None)
@given(masks)
def test_a_decoded_crop_is_the_mask_in_its_bounding_box(mask):
    encoded = rle.encode(mask)
    crop, x0, y0 = rle.decode_crop(encoded)
    assert rle.bbox(encoded) == (x0, y0, x0 + crop.shape[1], y0 + crop.shape[0]) or not mask.any()
    assert rle.encode_crop(crop, x0, y0, mask.shape) == encoded


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([3, 4], "sum to 7"),
        ([9, -3, 6], "negative"),
        ("", "not COCO text"),
        ("~~", "not COCO text"),
        ("P" * 9, "not COCO text"),
        ("41", "sum to 5"),
    ],
)
def test_broken_rles_are_refused_with_the_reason(counts, reason):
    with pytest.raises(ValueError, match=reason):
        rle.decode({"size": [3, 4], "counts": counts})


def _dense(
    polygons: list[np.ndarray], box: tuple[float, float, float, float], size: int, samples: int
) -> np.ndarray:
    """Coverage by testing every sample point against every polygon (even-odd rule, equal to winding for simple polygons)."""
    grid = (np.arange(size * samples) + 0.5) / (size * samples)
    x = box[0] + (box[2] - box[0]) * grid[None, :]
    y = box[1] + (box[3] - box[1]) * grid[:, None]
    inside = np.zeros((size * samples, size * samples), bool)
    for polygon in polygons:
        odd = np.zeros_like(inside)
        for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if ay != by:
                odd ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
        inside |= odd
    return inside.reshape(size, samples, size, samples).mean((1, 3))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 9), st.integers(1, 3))
def test_polygon_coverage_equals_dense_sampling(seed, corners, parts):
    rng = np.random.default_rng(seed)
    angles = [
        np.sort(rng.uniform(0, 2 * np.pi, corners))[:: rng.choice([-1, 1])] for _ in range(parts)
    ]
    polygons = [
        rng.uniform(5, 25, 2)
        + np.stack([np.cos(a), np.sin(a)], 1) * rng.uniform(2, 12, (corners, 1))
        for a in angles
    ]
    box = (4.3, 6.1, 23.7, 20.2)  # cuts most of them
    ours = rle.polygon_coverage(polygons, box, 14) / 255
    slow = _dense(polygons, box, 14, 24)
    # the union of two soft parts is taken as their maximum, which loses a little in cells that both cut
    assert np.abs(ours - slow).mean() < 0.015


def test_a_polygon_over_the_whole_box_covers_every_cell():
    square = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float)
    assert (rle.polygon_coverage([square], (0, 0, 10, 10), 28) == 255).all()
    assert (rle.polygon_coverage([square[::-1]], (2, 3, 9, 8), 28) == 255).all()
    assert (rle.polygon_coverage([square], (10, 10, 12, 12), 28) == 0).all()
    half = rle.polygon_coverage([square], (5, 0, 15, 10), 4)
    assert (half == [[255, 255, 0, 0]] * 4).all()


def test_polygon_coverage_agrees_with_pillows_drawing():
    points = [(12, 5), (60, 20), (50, 70), (30, 40), (8, 66)]
    drawn = Image.new("L", (80 * 16, 80 * 16))
    ImageDraw.Draw(drawn).polygon([(x * 16, y * 16) for x, y in points], fill=255)
    expected = np.asarray(drawn.reduce(16)).astype(int)
    assert (
        np.abs(
            rle.polygon_coverage([np.array(points, float)], (0, 0, 80, 80), 80) - expected
        ).mean()
        < 1
    )
