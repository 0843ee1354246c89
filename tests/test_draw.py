from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from maskrcnn.config import Category
from maskrcnn.draw.overlay import SMALLEST_CANVAS, draw_instances
from maskrcnn.draw.style import PALETTE, distinct
from maskrcnn.instances import Instances

WALKER = Category("walker", 1, keypoints=("head", "foot"), skeleton=((0, 1),))


def scene(
    size: tuple[int, int],
    boxes: list[list[float]],
    masks: bool = True,
    keypoints: list[list[float]] | None = None,
) -> Instances:
    count = len(boxes)
    return Instances(
        size=size,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(count, 4),
        scores=torch.full((count,), 0.9),
        labels=torch.zeros(count, dtype=torch.int64),
        categories=(WALKER,),
        mask_grids=torch.ones(count, 8, 8) if masks else None,
        keypoints=None
        if keypoints is None
        else torch.tensor(keypoints, dtype=torch.float32).expand(count, 2, 3),
        source=np.full((*size, 3), 128, np.uint8),
    )


def changed(instances: Instances, **options: Any) -> np.ndarray:
    """Pixels that drawing changed."""
    drawn = np.asarray(draw_instances(instances, **options))
    return (drawn != 128).any(axis=2)


def test_masks_color_their_own_pixels_and_no_others() -> None:
    instances = scene((700, 800), [[100, 150, 300, 450]])
    touched = changed(instances, boxes=False, names=False)
    assert np.array_equal(touched, instances.masks.dense()[0].numpy())


def test_boxes_lie_on_the_edge_of_what_they_enclose() -> None:
    touched = changed(scene((700, 800), [[100, 150, 300, 450]], masks=False), names=False)
    rows, columns = np.nonzero(touched)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (100, 150, 300, 450)
    assert not touched[200:400, 150:250].any()


def test_limbs_are_drawn_only_between_confident_keypoints() -> None:
    confident = scene(
        (700, 800),
        [[100, 100, 500, 600]],
        masks=False,
        keypoints=[[200, 200, 0.9], [400, 500, 0.9]],
    )
    middle = (slice(345, 356), slice(295, 306))
    assert changed(confident, boxes=False, names=False)[middle].any()
    uncertain = scene(
        (700, 800),
        [[100, 100, 500, 600]],
        masks=False,
        keypoints=[[200, 200, 0.9], [400, 500, 0.01]],
    )
    touched = changed(uncertain, boxes=False, names=False)
    assert not touched[middle].any()
    assert touched[200, 200]
    assert not touched[500, 400]


def test_overlays_keep_the_size_of_the_image_unless_asked() -> None:
    for size in ((75, 100), (1200, 1600)):
        assert draw_instances(scene(size, [[10, 10, 50, 60]])).size == (size[1], size[0])
    enlarged = draw_instances(scene((75, 100), [[10, 10, 50, 60]]), enlarge=True)
    assert enlarged.size == (600, 450)
    assert max(enlarged.size) >= 0.8 * SMALLEST_CANVAS
    large = scene((1200, 1600), [[10, 10, 50, 60]])
    assert draw_instances(large, enlarge=True).size == (1600, 1200)


@pytest.mark.parametrize("side", [300, 800, 4000])
def test_lines_and_letters_grow_with_the_image(side: int) -> None:
    instances = scene((side, side), [[0.2 * side, 0.3 * side, 0.6 * side, 0.8 * side]], masks=False)
    share = changed(instances, boxes=True, names=True).mean()
    assert 0.004 < share < 0.04


def test_three_hundred_names_do_not_cover_the_image() -> None:
    boxes = [[x, y, x + 30, y + 30] for x in range(0, 800, 40) for y in range(0, 600, 40)]
    assert len(boxes) == 300
    assert changed(scene((600, 800), boxes, masks=False), boxes=False).mean() < 0.25


def test_names_do_not_cover_each_other_and_stay_inside() -> None:
    apart = [[100 * n + 10.0, 200.0, 100 * n + 90.0, 300.0] for n in range(5)]
    one = changed(scene((700, 800), apart[:1], masks=False), boxes=False).sum()
    assert one > 0
    assert changed(
        scene((700, 800), [apart[0]] * 4, masks=False), boxes=False
    ).sum() == pytest.approx(4 * one, rel=0.5)
    edge = scene((700, 800), [[0, 0, 800, 700]], masks=False)
    assert changed(edge, boxes=False).sum() == pytest.approx(one, rel=0.5)


def test_neighbors_have_different_colors() -> None:
    boxes = np.array(
        [
            [x, y, x + 12, y + 12]
            for x in range(0, 100, 10)
            for y in range(0, 10 * len(PALETTE), 10)
        ],
        dtype=np.float32,
    )
    colors = distinct(boxes, len(PALETTE))
    for n, box in enumerate(boxes):
        touching = (boxes[:, :2] < box[2:]).all(axis=1) & (boxes[:, 2:] > box[:2]).all(axis=1)
        touching[n] = False
        assert not (colors[touching] == colors[n]).any()
    assert len(set(colors.tolist())) == len(PALETTE)


def test_without_objects_the_image_is_unchanged() -> None:
    assert not changed(scene((700, 800), [], keypoints=[[0, 0, 0], [0, 0, 0]])).any()


def test_an_image_of_another_size_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"expected .* of 700x800 pixels \(height x width\), got 10x20"
    ):
        draw_instances(scene((700, 800), []), np.zeros((10, 20, 3), np.uint8))


def test_drawing_does_not_change_the_given_image() -> None:
    image = np.full((700, 800, 3), 128, np.uint8)
    draw_instances(replace(scene((700, 800), [[100, 150, 300, 450]]), source=image))
    assert (image == 128).all()


def labels_only(instances: Instances, **options: Any) -> np.ndarray:
    """Pixels that labels cover."""
    return changed(instances, boxes=False, masks=False, keypoints=False, **options)


def covered(instances: Instances) -> list[float]:
    """The share of each box that labels cover."""
    touched = labels_only(instances)
    whole = instances.boxes.round().int().tolist()
    return [float(touched[y0:y1, x0:x1].mean()) for x0, y0, x1, y1 in whole]


def random_boxes(count: int, size: tuple[int, int], low: int, high: int) -> list[list[float]]:
    rng = np.random.default_rng(count)
    height, width = size
    sides = rng.integers(low, high, (count, 2))
    starts = (rng.random((count, 2)) * ([width, height] - sides)).round()
    return np.concatenate([starts, starts + sides], axis=1).tolist()


@pytest.mark.parametrize(("count", "low", "high"), [(6, 5, 14), (40, 20, 60), (300, 6, 30)])
def test_labels_do_not_cover_objects(count: int, low: int, high: int) -> None:
    instances = scene((300, 400), random_boxes(count, (300, 400), low, high))
    assert max(covered(instances)) <= 0.1


def test_a_few_tiny_objects_all_have_labels_even_in_the_corners() -> None:
    corners = [[0, 0, 7, 7], [393, 0, 400, 7], [0, 293, 7, 300], [393, 293, 400, 300]]
    instances = scene((300, 400), corners)
    touched = labels_only(instances)
    for rows in (slice(0, 150), slice(150, 300)):
        for columns in (slice(0, 200), slice(200, 400)):
            assert touched[rows, columns].sum() > 300
    assert covered(instances) == [0, 0, 0, 0]


def test_the_box_of_a_tiny_object_leaves_the_object_visible() -> None:
    touched = changed(scene((300, 400), [[100, 100, 105, 104]], masks=False), names=False)
    assert touched.any()
    assert not touched[100:104, 100:105].any()


def test_colors_are_the_users() -> None:
    instances = scene((100, 100), [[10, 10, 40, 40], [60, 60, 90, 90]])

    def inks(colors: Any) -> list[tuple[int, ...]]:
        pixels = draw_instances(instances, names=False, colors=colors)
        return [pixels.getpixel((10, 10)), pixels.getpixel((60, 60))]

    assert inks("orange") == [(255, 165, 0)] * 2
    assert inks((1, 2, 3)) == [(1, 2, 3)] * 2
    assert set(inks(["#ff0000", (0, 0, 255)])) == {(255, 0, 0), (0, 0, 255)}
    assert inks({"walker": np.array([9, 8, 7])}) == [(9, 8, 7)] * 2


@pytest.mark.parametrize(
    ("colors", "message"),
    [
        ("oragne", 'unknown color "oragne"; did you mean orange'),
        ([], "at least one color"),
        ((0.5, 0.2, 0.1), "three whole numbers 0 to 255"),
        ((1, 2, 300), "three whole numbers 0 to 255"),
        ({"walkr": "red"}, 'unknown category "walkr"; expected one of walker'),
        ([None], "expected a color: a name, #rrggbb, or three"),
        (5, "expected a color: a name, #rrggbb, or three"),
    ],
)
def test_a_wrong_color_is_an_error_that_names_it(colors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_instances(scene((60, 60), [[10, 10, 40, 40]]), colors=colors)


def test_line_widths_fonts_and_opacity_are_the_users(tmp_path: Path) -> None:
    instances = scene((200, 300), [[50, 80, 150, 180]])
    thin, wide = (changed(instances, masks=False, names=False, line_width=w) for w in (1, 5))
    assert thin[100, 50]
    assert not thin[100, 54]
    assert wide[100, 54]
    assert not wide[100, 55]

    small, large = (labels_only(instances, font_size=size).sum() for size in (10, 20))
    assert large > 2 * small
    font = ImageFont.load_default(size=20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert labels_only(instances, font=font).sum() == large

    empty = changed(instances, boxes=False, names=False, opacity=0)
    assert not empty[120:140, 90:110].any()
    for name, value in {"opacity": 1.5, "line_width": 0, "font_size": -1}.items():
        with pytest.raises(ValueError, match=f"{name}: expected"):
            draw_instances(instances, **{name: value})
    with pytest.raises(ValueError, match=r"none\.ttf: cannot be read"):
        draw_instances(instances, font=tmp_path / "none.ttf")


def test_an_image_of_pillow_is_drawn_on_and_other_arrays_are_an_error() -> None:
    instances = scene((60, 80), [[10, 10, 40, 40]])
    assert draw_instances(instances, Image.new("L", (80, 60))).size == (80, 60)
    with pytest.raises(ValueError, match=r"expected an RGB array .* got float64 \[60, 80\]"):
        draw_instances(instances, np.zeros((60, 80)))


def test_a_thousand_objects_are_drawn_within_seconds_and_without_a_carpet_of_labels() -> None:
    instances = scene((600, 800), random_boxes(1000, (600, 800), 5, 40), masks=False)
    assert labels_only(instances).mean() < 0.25
    assert max(covered(instances)) <= 0.5  # by several labels, each of which covers little
