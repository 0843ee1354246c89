"""Objects without masks, cut out by color: what is found, pasted, and left after a crop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_config
from PIL import Image

import maskrcnn as mr
from maskrcnn.augmentation.copy_paste import hide, paste
from maskrcnn.augmentation.cut_out import masks_by_color
from maskrcnn.augmentation.moved_masks import Pixels
from maskrcnn.augmentation.objects import ViewMask, ViewObjects
from maskrcnn.augmentation.training_set import TrainingSet
from maskrcnn.config import AugmentConfig
from maskrcnn.synthetic.scenes import write_scenes

NO_BOXES, NO_POINTS = np.zeros((0, 4)), np.zeros((0, 0, 3))
RED, BLUE = (200, 30, 40), (40, 50, 210)


def disc(side: int, center: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side] + 0.5
    return np.hypot(x - center[0], y - center[1]) < radius


def painted(masks: list[np.ndarray], colors: list[tuple[int, int, int]], seed: int) -> np.ndarray:
    """Striped objects, each over those before it, on a background of green noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(40, 70, (*masks[0].shape, 3))
    pixels[..., 1] += 80
    for mask, color in zip(masks, colors, strict=True):
        pixels[mask] = color
        stripes = mask & (np.arange(mask.shape[1]) % 7 == 0)
        pixels[stripes] = np.array(color) + np.where(np.array(color) < 128, 30, -30)
    return pixels.astype(np.uint8)


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def found(pixels: np.ndarray, boxes: list, points: np.ndarray | None = None) -> list[Pixels | None]:
    none = np.zeros((len(boxes), 0, 3))
    return masks_by_color(pixels, np.array(boxes, float), none if points is None else points)


def iou(mask: Pixels | None, true: np.ndarray) -> float:
    assert mask is not None
    whole = np.zeros_like(true)
    height, width = mask.crop.shape
    whole[mask.y0 : mask.y0 + height, mask.x0 : mask.x0 + width] = mask.crop
    return (whole & true).sum() / (whole | true).sum()


@pytest.mark.parametrize("side", [40, 300])
def test_an_object_is_cut_out_where_the_colors_of_the_background_end(side: int) -> None:
    true = disc(side, (side / 2, side / 2), 0.3 * side)
    [mask] = found(painted([true], [RED], 0), [bounds(true)])
    assert iou(mask, true) > 0.93


@given(st.integers(0, 1000), st.floats(1.25, 1.9))
@settings(max_examples=20, deadline=None)
def test_overlapping_objects_are_told_apart_by_their_colors(seed: int, distance: float) -> None:
    """The second lies over the first where they meet."""
    lower, upper = (disc(80, (26 + 18 * k, 30 + 15 * k), 18) for k in (0, distance))
    pixels = painted([lower, upper], [RED, BLUE], seed)
    seen = lower & ~upper
    masks = found(pixels, [bounds(seen), bounds(upper)])
    for mask, true in zip(masks, (seen, upper), strict=True):
        assert iou(mask, true) > 0.9


def test_objects_that_colors_do_not_show_are_not_cut_out() -> None:
    """Inside another box, in the background's colors, without background around, small in the box."""
    true = disc(40, (20, 20), 12)
    pixels = painted([true], [RED], 1)
    box = bounds(true)
    assert found(pixels, [box])[0] is not None
    assert found(pixels, [box, (6, 6, 36, 36)])[0] is None
    assert found(pixels, [(0, 0, 40, 40)]) == [None]

    stripes = np.arange(0, 200, 5, dtype=np.uint8)[:, None, None]
    stripes = np.broadcast_to(stripes, pixels.shape).copy()
    assert found(stripes, [box]) == [None]
    stripes[14:26, 14:26] = (250, 0, 0)  # a quarter of the box, not at its sides
    assert found(stripes, [box]) == [None]


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.lists(st.tuples(*[st.floats(-20, 60)] * 4), max_size=6),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_boxes_each_mask_lies_in_its_own(
    size: tuple[int, int], corners: list[tuple[float, ...]], colors: int
) -> None:
    """Also boxes outside the image, without area, reversed or equal."""
    boxes = [*corners, *corners[:1]]
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8) // 4**colors
    masks = found(pixels, boxes) if boxes else masks_by_color(pixels, NO_BOXES, NO_POINTS)
    assert len(masks) == len(boxes)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        if mask is not None:
            left, top, right, bottom = mask.extent
            assert max(0, np.floor(x0)) <= left < right <= min(size[1], np.ceil(x1))
            assert max(0, np.floor(y0)) <= top < bottom <= min(size[0], np.ceil(y1))
            assert mask.crop.any()


def test_a_mask_that_labeled_points_contradict_is_dropped() -> None:
    true = disc(40, (20, 20), 12)
    pixels = painted([true], [RED], 1)
    right = [[20.5, 20.5, 2], [12.5, 20.5, 2], [9.5, 9.5, 1], [30.5, 9.5, 1], [0, 0, 0]]
    assert found(pixels, [bounds(true)], np.array([right], float))[0] is not None
    wrong = [[*point[:2], 3 - point[2]] if point[2] else point for point in right[:2]] + right[2:]
    assert found(pixels, [bounds(true)], np.array([wrong], float)) == [None]


def objects_of(mask: Pixels) -> ViewObjects:
    """One object with a box, a mask by color and two labeled points."""
    return ViewObjects(
        boxes=mask.extent[None],
        has_box=np.ones(1, bool),
        labels=np.zeros(1, np.int64),
        ignore=np.zeros(1, bool),
        masks=[ViewMask(mask, np.eye(3), by_color=True)],
        keypoints=np.zeros((1, 0, 3)),
        points=np.full((1, 2, 3), 5.0),
        spans=np.ones((1, 2), bool),
        annotation_ids=np.zeros(1, np.int64),
    )


def test_a_pasted_object_keeps_its_annotations_and_gets_no_true_mask() -> None:
    true = disc(40, (20, 20), 12)
    source = painted([true], [RED], 0)
    [mask] = found(source, [bounds(true)])
    assert mask is not None
    objects = objects_of(mask)
    host = np.zeros((40, 40, 3), np.uint8)
    none = objects.take([])
    pasted, result = paste(host, none, source, objects, (0, 0), np.random.default_rng(0))

    shown = pasted.any(axis=2)
    assert (pasted[shown] == source[shown]).all()
    assert iou(mask, shown) == 1
    assert result.boxes.tolist() == objects.boxes.tolist()
    assert (result.points == objects.points).all()
    assert result.spans.all()
    assert not result.truth(14).has_mask.any()


def test_a_pasted_object_keeps_the_sides_of_its_box_that_no_crop_cuts(tmp_path: Path) -> None:
    """The annotated box is larger than what the colors show, as is usual for blurred objects."""
    true = disc(60, (30, 30), 18)
    pixels = np.where(true[..., None], RED, (50, 130, 50)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "disc.png")
    box = [11, 10.5, 39, 38.5]
    content = {
        "images": [{"id": 1, "file_name": "disc.png", "width": 60, "height": 60}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}],
        "categories": [{"id": 1, "name": "disc"}],
    }
    data = mr.CocoDataset(content, tmp_path)
    model = replace(tiny_config(data.categories), categories=data.categories, keypoint=None)
    augment = AugmentConfig(scale=(1.0, 1.0), copy_paste=1.0, flip_horizontal=0.0)
    examples = TrainingSet(data, model, augment)
    numbers = []
    for seed in range(20):
        example = examples.example(0, seed)
        scale = float(example.to_model[0, 0])
        numbers.append(len(example.truth.boxes[0]))
        for found in example.truth.boxes[0]:
            assert (found[2:] - found[:2]).tolist() == pytest.approx([39 * scale, 38.5 * scale])
    assert max(numbers) > 0


def test_under_a_paste_the_box_shrinks_to_what_is_still_seen() -> None:
    true = disc(40, (20, 20), 12)
    objects = objects_of(Pixels(true[8:32, 8:32], 8, 8))
    over = np.zeros((40, 40), bool)
    over[:, 23:] = True
    rest = bounds(true & ~over)
    left = hide(objects, over)
    assert left.boxes.tolist() == [list(rest)]
    assert left.spans.tolist() == [[True, True]]

    over[:] = False
    over[:, 18:21] = True  # no column of these shows the object any more
    left = hide(objects, over)
    assert left.boxes.tolist() == objects.boxes.tolist()
    assert left.spans.tolist() == [[False, True]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 8, size=96)


def test_a_cut_object_has_the_box_of_the_part_that_its_colors_show(scenes: Path) -> None:
    """Nearer to the bounds of the visible mask than the clipped box, and never larger than that."""
    whole = mr.load_dataset(scenes)
    content = json.loads(scenes.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    boxed = mr.CocoDataset(content, scenes.parent / "images")
    model = replace(tiny_config(whole.categories), categories=whole.categories, keypoint=None)
    augment = AugmentConfig(crop=48, scale=(0.9, 1.1), right_angles=True, copy_paste=0.0)

    ours, clipped = [], []
    for index in range(len(whole)):
        boxes = {a.id: a.box for a in boxed[index].annotations}
        for seed in range(8):
            full = TrainingSet(whole, model, augment).example(index, seed)
            weak = TrainingSet(boxed, model, augment).example(index, seed)
            true = dict(
                zip(full.truth.annotation_ids[0].tolist(), full.truth.boxes[0], strict=True)
            )
            height, width = weak.image.shape[1:]
            for number, box in zip(
                weak.truth.annotation_ids[0].tolist(), weak.truth.boxes[0].numpy(), strict=True
            ):
                corners = np.array(boxes[number]).reshape(2, 2) @ weak.to_model[:2, :2].numpy().T
                corners += weak.to_model[:2, 2].numpy()
                moved = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
                limits = np.clip(moved, 0, (width, height, width, height))
                assert (box[:2] >= limits[:2] - 0.01).all()
                assert (box[2:] <= limits[2:] + 0.01).all()
                if number in true and np.abs(moved - limits).max() > 0.5:
                    ours.append(np.abs(box - true[number].numpy()).max())
                    clipped.append(np.abs(limits - true[number].numpy()).max())
    assert len(ours) > 30
    assert np.mean(ours) < 0.7 * np.mean(clipped)


def test_an_object_of_which_a_view_shows_no_color_is_ignored(tmp_path: Path) -> None:
    """The view may lie in the empty corner of the box. Nobody drew a mask that says so, so what is
    there is neither the object nor background.
    """
    true = np.zeros((80, 80), bool)
    true[10:70, 10:18] = True
    true[62:70, 10:70] = True
    pixels = np.where(true[..., None], RED, (50, 130, 50)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    content = {
        "images": [{"id": 1, "file_name": "corner.png", "width": 80, "height": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 60, 60]}],
        "categories": [{"id": 1, "name": "angle"}],
    }
    data = mr.CocoDataset(content, tmp_path)
    model = replace(tiny_config(data.categories), categories=data.categories, keypoint=None)
    augment = AugmentConfig(crop=32, scale=(1.0, 1.0), copy_paste=0.0, flip_horizontal=0.0)
    training_set = TrainingSet(data, model, augment)

    without_color, not_ignored = 0, 0
    for seed in range(120):
        example = training_set.example(0, seed)
        matrix = example.to_model.numpy()
        scale = matrix[0, 0]
        left, top = -matrix[:2, 2] / scale
        right, bottom = left + 32 / scale, top + 32 / scale
        not_ignored += int((~example.truth.ignore).sum())
        if left < 20 or top < 20 or right > 68 or bottom > 60:
            continue  # not wholly in the corner
        without_color += 1
        assert example.truth.ignore.tolist() == [[True]]
        assert example.truth.boxes[0][0].tolist() == pytest.approx([0, 0, 32, 32], abs=0.01)
    assert without_color > 5
    assert not_ignored > 5
