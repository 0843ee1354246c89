"""One 3x3 matrix moves points, boxes and images alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.augmentation import geometry
from maskrcnn.augmentation.augment import AugmentedView, color_matrix, draw_view, warp
from maskrcnn.config import AugmentConfig, InputConfig
from maskrcnn.preprocess import input_size, resize

OWN_SCALE = InputConfig(min_size=None, max_size=None)

steps = st.one_of(
    st.builds(geometry.scale, st.floats(0.2, 5), st.floats(0.2, 5)),
    st.builds(geometry.translate, st.floats(-50, 50), st.floats(-50, 50)),
    st.builds(geometry.flip_horizontal, st.floats(1, 100)),
    st.builds(geometry.flip_vertical, st.floats(1, 100)),
    st.builds(
        geometry.rotate, st.floats(-180, 180), st.tuples(st.floats(-50, 50), st.floats(-50, 50))
    ),
    st.builds(
        geometry.quarter_turns, st.integers(0, 7), st.tuples(st.floats(1, 100), st.floats(1, 100))
    ),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=5), st.integers(0, 1000))
def test_a_composed_matrix_equals_its_steps_in_sequence(matrices, seed):
    points = np.random.default_rng(seed).uniform(-100, 100, (6, 2))
    moved = points
    for matrix in matrices:
        moved = geometry.move_points(matrix, moved)
    whole = geometry.compose(*matrices)
    assert np.allclose(geometry.move_points(whole, points), moved, atol=1e-5)
    assert np.allclose(geometry.move_points(np.linalg.inv(whole), moved), points, atol=1e-5)
    assert geometry.mirrored(whole) == (sum(map(geometry.mirrored, matrices)) % 2 == 1)


def test_each_step_moves_points_as_named():
    corner = np.array([10.0, 5.0])
    assert geometry.move_points(geometry.flip_horizontal(80), corner).tolist() == [70, 5]
    assert geometry.move_points(geometry.flip_vertical(60), corner).tolist() == [10, 55]
    assert geometry.move_points(geometry.quarter_turns(1, (60, 80)), corner).tolist() == [5, 70]
    assert geometry.move_points(geometry.rotate(90, (10, 10)), corner) == pytest.approx([15, 10])
    assert geometry.move_boxes(
        geometry.flip_horizontal(80), np.array([[10.0, 5.0, 30.0, 25.0]])
    ).tolist() == [[50, 5, 70, 25]]
    assert geometry.is_axis_aligned(geometry.quarter_turns(3, (60, 80)))
    assert not geometry.is_axis_aligned(geometry.rotate(1, (0, 0)))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (10, 13, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(9, 0).repeat(8, 1))[:83, :101]


def _view(
    image: np.ndarray, *matrices: np.ndarray, size: tuple[int, int] | None = None
) -> AugmentedView:
    return AugmentedView(geometry.compose(*matrices), size or image.shape[:2])


def test_flips_and_right_angles_move_pixels_exactly(image):
    height, width = image.shape[:2]
    assert (
        warp(image, _view(image, geometry.flip_horizontal(width)), OWN_SCALE) == image[:, ::-1]
    ).all()
    assert (
        warp(image, _view(image, geometry.flip_vertical(height)), OWN_SCALE) == image[::-1]
    ).all()
    for turns in range(4):
        expected = np.rot90(image, turns)
        for mirror in (False, True):
            matrices = [geometry.quarter_turns(turns, (height, width))]
            if mirror:
                matrices.append(geometry.flip_horizontal(expected.shape[1]))
            view = _view(image, *matrices, size=expected.shape[:2])
            assert (
                warp(image, view, OWN_SCALE) == (expected[:, ::-1] if mirror else expected)
            ).all()


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.7])
def test_a_crop_is_a_part_of_the_resized_image(image, factor):
    height, width = (int(s * factor) for s in image.shape[:2])
    whole = resize(image, (height, width), OWN_SCALE).numpy().transpose(1, 2, 0)
    scaled = geometry.scale(width / image.shape[1], height / image.shape[0])
    assert (warp(image, _view(image, scaled, size=(height, width)), OWN_SCALE) == whole).all()
    crop = warp(image, _view(image, scaled, geometry.translate(-13, -7), size=(20, 25)), OWN_SCALE)
    assert np.abs(crop.astype(int) - whole[7:27, 13:38]).max() <= 1


def test_a_model_without_antialiasing_gets_images_without_antialiasing(image):
    config = InputConfig(min_size=None, max_size=None, resize="torch")
    size = (30, 40)
    whole = resize(image, size, config).numpy().transpose(1, 2, 0)
    scaled = geometry.scale(40 / image.shape[1], 30 / image.shape[0])
    pixels = warp(image, _view(image, scaled, size=size), config).astype(float)
    assert np.abs(pixels - whole).max() < 1.01
    assert np.abs(warp(image, _view(image, scaled, size=size), OWN_SCALE) - whole).max() > 20


def test_a_rotation_samples_between_pixels_and_pads_with_the_mean(image):
    height, width = image.shape[:2]
    matrix = geometry.rotate(25, (width / 2, height / 2))
    pixels = warp(image, _view(image, matrix), OWN_SCALE)
    back = np.linalg.inv(matrix)
    checked = outside = 0
    for y in range(0, height, 3):
        for x in range(0, width, 3):
            u, v = geometry.move_points(back, np.array([x + 0.5, y + 0.5]))
            if 1 < u < width - 1 and 1 < v < height - 1:
                left, top = int(u - 0.5), int(v - 0.5)
                a, b = u - 0.5 - left, v - 0.5 - top
                near = image[top : top + 2, left : left + 2].astype(float)
                expected = (1 - b) * ((1 - a) * near[0, 0] + a * near[0, 1]) + b * (
                    (1 - a) * near[1, 0] + a * near[1, 1]
                )
                assert np.abs(pixels[y, x] - expected).max() < 1.5
                checked += 1
            elif not (-1 < u < width + 1 and -1 < v < height + 1):
                assert pixels[y, x].tolist() == [124, 116, 104]
                outside += 1
    assert checked > 300
    assert outside > 20


def test_a_rotated_shrunken_crop_is_antialiased(image):
    matrix = geometry.compose(
        geometry.scale(0.4, 0.4), geometry.rotate(25, (20, 16)), geometry.translate(-8, -6)
    )
    pixels = warp(image, AugmentedView(matrix, (20, 24), False), OWN_SCALE).astype(float)
    fine = geometry.compose(
        geometry.scale(1.6, 1.6), geometry.rotate(25, (80, 64)), geometry.translate(-32, -24)
    )
    area = (
        warp(image, AugmentedView(fine, (80, 96), False), OWN_SCALE)
        .reshape(20, 4, 24, 4, 3)
        .mean((1, 3))
    )
    assert np.abs(pixels - area).mean() < 12


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([None, 40, 200]),
    st.sampled_from([0.0, 30.0]),
)
def test_a_view_is_a_function_of_the_seed_and_fits_its_crop(seed, right_angles, crop, rotation):
    config = AugmentConfig(
        scale=(0.5, 2.0), flip_vertical=0.5, right_angles=right_angles, crop=crop, rotation=rotation
    )
    boxes = np.array([[5.0, 5.0, 9.0, 9.0], [70.0, 50.0, 79.0, 59.0]])
    views = [
        draw_view(config, OWN_SCALE, (60, 80), boxes, np.random.default_rng(seed)) for _ in range(2)
    ]
    assert (views[0].matrix == views[1].matrix).all()
    assert views[0].size == views[1].size
    assert max(views[0].size) <= (crop or 10**6)
    if not rotation:  # a crop never leaves the image
        corners = geometry.move_boxes(
            np.linalg.inv(views[0].matrix),
            np.array([0, 0, views[0].size[1], views[0].size[0]], float),
        )
        assert corners[:2].min() > -1e-6
        assert (corners[2:] < (80 + 1e-6, 60 + 1e-6)).all()


def test_the_scale_multiplies_the_size_of_the_resize_rule():
    rule = InputConfig(min_size=100, max_size=120)
    sizes = [
        draw_view(
            AugmentConfig(scale=(0.5, 1.0)),
            rule,
            (60, 80),
            np.zeros((0, 4)),
            np.random.default_rng(s),
        ).size
        for s in range(200)
    ]
    assert input_size(60, 80, rule) == (90, 120)
    assert max(w for _, w in sizes) in (119, 120)
    assert min(w for _, w in sizes) in (60, 61)
    logs = np.log([w for _, w in sizes])
    assert np.median(logs) == pytest.approx(np.log(120 * 0.5**0.5), abs=0.08)


def test_crops_prefer_objects_and_still_contain_background():
    box = np.array([[400.0, 300.0, 420.0, 320.0]])
    config = AugmentConfig(scale=(1.0, 1.0), crop=64)
    hits = 0
    for seed in range(300):
        view = draw_view(config, OWN_SCALE, (500, 700), box, np.random.default_rng(seed))
        x, y = geometry.move_points(view.matrix, np.array([410.0, 310.0]))
        hits += 0 <= x <= 64 and 0 <= y <= 64
    assert 0.7 < hits / 300 < 0.9


def test_color_changes_are_one_matrix():
    identity = color_matrix((1, 1, 1, 0), 100)
    assert np.allclose(identity, np.eye(3, 4))
    gray = color_matrix((1, 1, 0, 0), 100) @ [10, 200, 30, 1]
    assert np.allclose(gray, 0.299 * 10 + 0.587 * 200 + 0.114 * 30)
    assert np.allclose(color_matrix((0.5, 1, 1, 0), 100) @ [10, 200, 30, 1], [5, 100, 15])
    assert np.allclose(color_matrix((1, 2, 1, 0), 100) @ [100, 150, 50, 1], [100, 200, 0])
    third = color_matrix((1, 1, 1, 2 * np.pi / 3), 100) @ [10, 200, 30, 1]
    assert np.allclose(sorted(third), [10, 30, 200])
    assert not np.allclose(third, [10, 200, 30])


def test_color_jitter_reaches_the_image(image):
    config = AugmentConfig(
        scale=(1.0, 1.0), flip_horizontal=0, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1
    )
    view = draw_view(config, OWN_SCALE, image.shape[:2], np.zeros((0, 4)), np.random.default_rng(3))
    pixels = warp(image, view, OWN_SCALE)
    gray = image[::4, ::4].reshape(-1, 3).mean(0) @ [0.299, 0.587, 0.114]
    expected = (
        image.astype(float) @ color_matrix(view.color, gray)[:, :3].T
        + color_matrix(view.color, gray)[:, 3]
    )
    assert np.abs(pixels - np.clip(expected, 0, 255)).max() < 1
    assert np.abs(pixels.astype(int) - image).mean() > 5
