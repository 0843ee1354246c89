from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskrcnn.config import Category
from maskrcnn.draw import PALETTE, SMALLEST_CANVAS, _distinct, draw_instances
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


def changed(instances: Instances, **options: bool) -> np.ndarray:
    """Pixels that drawing changed."""
    drawn = np.asarray(draw_instances(instances, **options))
    return (drawn != 128).any(axis=2)


def test_masks_color_their_own_pixels_and_no_others() -> None:
    instances = scene((700, 800), [[100, 150, 300, 450]])
    touched = changed(instances, boxes=False, names=False)
    assert np.array_equal(touched, instances.masks().dense()[0].numpy())


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


def test_tiny_images_are_enlarged_and_large_ones_keep_their_size() -> None:
    assert max(draw_instances(scene((75, 100), [[10, 10, 50, 60]])).size) >= 0.8 * SMALLEST_CANVAS
    assert draw_instances(scene((1200, 1600), [[10, 10, 50, 60]])).size == (1600, 1200)


@pytest.mark.parametrize("side", [100, 800, 4000])
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
    colors = _distinct(boxes)
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
