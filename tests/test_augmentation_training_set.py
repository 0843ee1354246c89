"""The truth stays on its objects under every augmentation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from coco_samples import HEIGHT, WIDTH, content, write

from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset, DataError
from maskrcnn.augmentation import geometry
from maskrcnn.augmentation.augment import AugmentedView
from maskrcnn.augmentation.moved_masks import Pixels, Polygons, mask_of
from maskrcnn.augmentation.training_set import TrainingSet, collate
from maskrcnn.config import AugmentConfig, InputConfig, KeypointHeadConfig
from maskrcnn.preprocess import prepare
from maskrcnn.presets import maskrcnn_r18_small, maskrcnn_r50_fpn_torchvision

STILL = AugmentConfig(flip_horizontal=0.0, scale=(1.0, 1.0))


@pytest.fixture
def data(tmp_path) -> CocoDataset:
    return CocoDataset(write(tmp_path), tmp_path)


def _set(data: CocoDataset, augment: AugmentConfig | None, **changes) -> TrainingSet:
    return TrainingSet(data, replace(maskrcnn_r18_small(data.categories), **changes), augment)


def pasted(coverage: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """A mask grid at the image's pixel centers, bilinear, edge cells continued to the edge of the box, cut at one half."""
    side = coverage.shape[0]
    out = np.zeros(size, bool)
    x0, y0, x1, y1 = box
    columns = np.flatnonzero((np.arange(size[1]) + 0.5 >= x0) & (np.arange(size[1]) + 0.5 < x1))
    rows = np.flatnonzero((np.arange(size[0]) + 0.5 >= y0) & (np.arange(size[0]) + 0.5 < y1))
    u = np.clip((columns + 0.5 - x0) / (x1 - x0) * side - 0.5, 0, side - 1)
    v = np.clip((rows + 0.5 - y0) / (y1 - y0) * side - 0.5, 0, side - 1)
    left, top = np.minimum(u.astype(int), side - 2), np.minimum(v.astype(int), side - 2)
    a, b = (u - left)[None], (v - top)[:, None]
    grid = coverage / 255
    at = lambda r, c: grid[np.ix_(r, c)]  # noqa: E731
    value = (1 - b) * ((1 - a) * at(top, left) + a * at(top, left + 1)) + b * (
        (1 - a) * at(top + 1, left) + a * at(top + 1, left + 1)
    )
    out[np.ix_(rows, columns)] = value >= 0.5
    return out


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max((a | b).sum(), 1)


def test_without_augmentation_the_image_is_that_of_prediction(data):
    for rule in (
        InputConfig(min_size=100, max_size=120),
        InputConfig(min_size=100, max_size=120, resize="torch", rounding="floor"),
    ):
        example = _set(data, None, input=rule).example(0, 5)
        image, to_model = prepare(data.image(0), rule)
        assert torch.equal(example.image, image)
        assert torch.equal(example.to_model, to_model)
        assert np.allclose(example.truth.boxes[0, 0], np.array([10, 10, 40, 45]) * 1.5)


def test_an_example_is_a_function_of_index_and_seed(data):
    wild = AugmentConfig(
        scale=(0.5, 2.0), rotation=30, crop=50, right_angles=True, brightness=0.3, hue=0.1
    )
    first, second = _set(data, wild), _set(data, wild)
    for index in range(3):
        second.example((index + 1) % 3, 8)  # another history
        a, b = first.example(index, 7), second.example(index, 7)
        assert torch.equal(a.image, b.image)
        for name, value in vars(a.truth).items():
            other = getattr(b.truth, name)
            assert value is other or torch.equal(value, other), name
        assert not torch.equal(first.example(index, 8).to_model, a.to_model)


@pytest.mark.parametrize("change", ["horizontal", "vertical", *(f"turn {k}" for k in range(1, 4))])
def test_flips_and_turns_of_an_example_undo_those_of_its_image(data, change):
    plain = _set(data, None)
    size = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    for index in range(3):
        before = plain.example(index, 0)
        if change.startswith("turn"):
            turns = int(change[-1])
            image = plain._image(index)
            view = AugmentedView(
                geometry.quarter_turns(turns, (HEIGHT, WIDTH)),
                (WIDTH, HEIGHT) if turns % 2 else (HEIGHT, WIDTH),
            )
            truth = plain._truth(image, view)
            _nearly_equal(torch.rot90(truth.masks, -turns, (2, 3)), before.truth.masks)
            assert torch.equal(truth.keypoints[..., 2], before.truth.keypoints[..., 2])
            continue
        options = {"flip_horizontal": 1.0} if change == "horizontal" else {"flip_vertical": 1.0}
        after = _set(data, replace(STILL, **options)).example(index, 3)
        axis = -1 if change == "horizontal" else -2
        assert torch.equal(after.image.flip(axis), before.image)
        boxes = after.truth.boxes.clone()
        x = [0, 2] if change == "horizontal" else [1, 3]
        boxes[..., x] = size[x] - boxes[..., x[::-1]]
        assert torch.allclose(boxes, before.truth.boxes)
        _nearly_equal(after.truth.masks.flip(axis), before.truth.masks)
        # one flip swaps left and right, the other too
        keypoints = after.truth.keypoints[:, :, [0, 2, 1]].clone()
        shown = keypoints[..., 2] > 0
        keypoints[..., x[0]] = torch.where(
            shown, size[x[0]] - keypoints[..., x[0]], keypoints[..., x[0]]
        )
        assert torch.allclose(keypoints, before.truth.keypoints)
        for name in ("labels", "ignore", "has_box", "has_mask", "has_keypoints"):
            assert torch.equal(getattr(after.truth, name), getattr(before.truth, name))


def _nearly_equal(masks: torch.Tensor, others: torch.Tensor) -> None:
    """Polygons are exact along rows and sampled four times a row, so a rotated one differs a little at its border."""
    difference = (masks.float() - others.float()).abs().flatten()
    assert difference.numel() == 0 or (difference.max() < 33 and difference.mean() < 0.2)


def test_truth_is_partial_for_each_object(data):
    first, second, third = (_set(data, None).example(i, 0).truth for i in range(3))
    assert first.has_box.tolist() == [[True, True, True]]
    assert first.has_mask.tolist() == [[True, True, True]]
    assert first.has_keypoints.tolist() == [[True, False, False]]
    assert first.ignore.tolist() == [[False, False, True]]
    assert first.boxes[0, 2].tolist() == [5, 40, 75, 55]  # no box in the file: the mask's
    assert second.has_box.tolist() == [[True, False, True]]
    assert second.has_mask.tolist() == [[False, False, True]]
    assert second.has_keypoints.tolist() == [[False, True, False]]
    assert second.boxes[0, 1].tolist() == [40.5, 20.5, 60.5, 30.5]  # the hull of its keypoints
    assert third.boxes.shape == (1, 0, 4)


def test_a_model_without_heads_gets_no_truth_for_them(data):
    truth = _set(data, None, mask=None, keypoint=None).example(0, 0).truth
    assert truth.masks.shape == (1, 3, 1, 1)
    assert truth.keypoints.shape == (1, 3, 0, 3)
    assert not truth.has_mask.any()
    assert not truth.has_keypoints.any()


def test_keypoints_follow_the_models_pixel_convention(data):
    assert _set(data, None).example(0, 0).truth.keypoints[0, 0, 0].tolist() == [22.5, 15.5, 2]
    unshifted = _set(data, None, keypoint=KeypointHeadConfig(coco_offset=0.0)).example(0, 0)
    assert unshifted.truth.keypoints[0, 0, 0].tolist() == [22, 15, 2]


def test_a_thin_hull_of_keypoints_grows_to_a_region(tmp_path):
    one = content()
    one["annotations"] = [
        {"id": 1, "image_id": 70, "category_id": 9, "keypoints": [40, 20, 2, 0, 0, 0, 0, 0, 0]}
    ]
    data = CocoDataset(write(tmp_path, one), tmp_path)
    assert _set(data, None).example(0, 0).truth.boxes.tolist() == [[[36.5, 16.5, 44.5, 24.5]]]


@pytest.mark.parametrize("seed", range(30))
def test_crops_keep_truth_on_the_image(data, seed):
    """Against dense masks cut from the whole image: at scale 1 everything is exact."""
    training = _set(data, replace(STILL, crop=32))
    example = training.example(0, seed)
    x, y = (-example.to_model[:2, 2]).int().tolist()
    assert (
        example.image.numpy() == data.image(0).transpose(2, 0, 1)[:, y : y + 32, x : x + 32]
    ).all()
    image = training._image(0)
    for i in (1, 2):  # those with whole pixels
        mask = image.masks[i]
        dense = np.zeros((HEIGHT, WIDTH), bool)
        dense[mask.y0 : mask.y0 + mask.crop.shape[0], mask.x0 : mask.x0 + mask.crop.shape[1]] = (
            mask.crop
        )
        part = dense[y : y + 32, x : x + 32]
        if not part.any():
            continue
        ys, xs = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        box = [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]
        (row,) = [
            r
            for r in range(example.truth.boxes.shape[1])
            if example.truth.boxes[0, r].tolist() == box and example.truth.labels[0, r] == 0
        ]
        assert (pasted(example.truth.masks[0, row].numpy(), box, (32, 32)) == part).all()
        assert example.truth.ignore[0, row] == (
            i == 2 or (box[2] - box[0]) * (box[3] - box[1]) < 40
        )


def test_slivers_become_ignore_and_less_than_a_pixel_is_dropped(data):
    training = _set(data, STILL)
    image = training._image(1)  # its first object is a box alone: 5.5, 5.5, 25.5, 35.5

    def in_view(x: float) -> tuple[list, list]:
        truth = training._truth(
            image, AugmentedView(geometry.translate(-x, 0), (60, 30), whole=False)
        )
        mine = (truth.labels[0] == 0) & ~truth.has_mask[0]
        return truth.boxes[0][mine].tolist(), truth.ignore[0][mine].tolist()

    assert in_view(15) == ([[0, 5.5, 10.5, 35.5]], [False])
    assert in_view(24) == ([[0, 5.5, 1.5, 35.5]], [True])
    assert in_view(25) == ([], [])


def test_keypoints_outside_the_image_are_unlabeled(data):
    training = _set(data, STILL)
    truth = training._truth(
        training._image(0), AugmentedView(geometry.translate(-20, 0), (60, 60), whole=False)
    )
    assert truth.keypoints[0, 0, :, 2].tolist() == [2, 1, 0]
    assert truth.keypoints[0, 0, 2].tolist() == [0, 0, 0]
    truth = training._truth(
        training._image(1), AugmentedView(geometry.translate(-50, 0), (60, 30), whole=False)
    )
    (row,) = torch.nonzero(truth.has_keypoints[0]).flatten().tolist()
    assert truth.boxes[0, row].tolist() == [
        6.5,
        26.5,
        14.5,
        34.5,
    ]  # the hull of the remaining keypoint


@pytest.mark.parametrize("degrees", [0, 20, 75, 160])
@pytest.mark.parametrize("kind", ["polygons", "pixels"])
def test_boxes_of_rotated_and_cut_masks_are_tight(kind, degrees):
    polygon = np.array([(20, 10), (70, 25), (60, 55), (40, 30), (25, 50)], float)
    grid = rle.polygon_coverage([polygon], (0, 0, 90, 70), 720) >= 128
    rows = (np.arange(70) + 0.5) / 70 * 720
    columns = (np.arange(90) + 0.5) / 90 * 720
    pixels = grid[np.ix_(rows.astype(int), columns.astype(int))]
    mask = (
        Polygons((polygon,)) if kind == "polygons" else Pixels(*rle.decode_crop(rle.encode(pixels)))
    )
    matrix = geometry.compose(
        geometry.scale(1.5, 1.2), geometry.rotate(degrees, (60, 40)), geometry.translate(-30, -25)
    )
    size = (50, 60)
    # every point of a fine grid over the view, looked up in the original
    x, y = np.meshgrid((np.arange(600) + 0.5) / 10, (np.arange(500) + 0.5) / 10)
    u, v = np.moveaxis(geometry.move_points(np.linalg.inv(matrix), np.stack([x, y], -1)), -1, 0)
    if kind == "polygons":
        lookup, unit = grid, (720 / 90, 720 / 70)
    else:
        lookup, unit = pixels, (1, 1)
    column, row = np.floor(u * unit[0]).astype(int), np.floor(v * unit[1]).astype(int)
    valid = (column >= 0) & (row >= 0) & (column < lookup.shape[1]) & (row < lookup.shape[0])
    inside = np.zeros_like(valid)
    inside[valid] = lookup[row[valid], column[valid]]
    ys, xs = np.flatnonzero(inside.any(1)) / 10, np.flatnonzero(inside.any(0)) / 10
    expected = [xs[0], ys[0], xs[-1] + 0.1, ys[-1] + 0.1]
    box = mask.bounds(matrix, size)
    assert np.abs(np.subtract(box, expected)).max() < (0.35 if kind == "polygons" else 2)
    coverage = mask.coverage(matrix, box, 56)
    assert iou(pasted(coverage, box, size), inside[5::10, 5::10]) > 0.96


def test_a_mask_outside_the_view_has_no_bounds():
    matrix = geometry.translate(100, 0)
    for mask in (
        Polygons((np.array([(0, 0), (9, 0), (9, 9)], float),)),
        Pixels(np.ones((5, 5), bool), 3, 3),
    ):
        assert mask.bounds(matrix, (50, 50)) is None
        assert mask.bounds(geometry.compose(geometry.rotate(30, (0, 0)), matrix), (50, 50)) is None
    frame = Polygons((np.array([(-10, -10), (60, -10), (60, 60), (-10, 60)], float),))
    assert frame.bounds(np.eye(3), (50, 40)) == (0, 0, 40, 50)  # all edges lie outside


def test_stored_masks_paste_back_almost_exactly_on_real_objects(shared):
    """Bounds what is lost by keeping a mask as a 112-px crop in its box."""
    data = CocoDataset(
        shared / "data/coco_mini_kp/annotations/val.json", shared / "data/coco_mini_kp/images"
    )
    small, large = [], []
    for index in range(0, len(data), 2):
        record = data[index]
        for annotation in record.annotations:
            encoded = annotation.rle or _oracle_rle(annotation.polygons, record)
            dense, box = rle.decode(encoded), annotation.box
            coverage = mask_of(annotation).coverage(np.eye(3), box, 112)
            side = min(box[2] - box[0], box[3] - box[1])
            overlap = iou(pasted(coverage, box, dense.shape), _within(dense, box))
            (large if side > 32 and not annotation.ignore else small).append(overlap)
    assert len(large) > 100
    assert np.mean(large) > 0.99
    assert np.mean(small) > 0.9


def _oracle_rle(polygons, record) -> dict:
    from pycocotools import mask as oracle

    return oracle.merge(
        oracle.frPyObjects([p.reshape(-1).tolist() for p in polygons], record.height, record.width)
    )


def _within(dense: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    """The part of a mask inside the box, because COCO's boxes miss a few pixels of some masks."""
    x, y = np.arange(dense.shape[1]) + 0.5, np.arange(dense.shape[0]) + 0.5
    return dense & ((x >= box[0]) & (x < box[2]))[None] & ((y >= box[1]) & (y < box[3]))[:, None]


def test_the_cache_stays_within_its_bound(data):
    training = TrainingSet(
        data, maskrcnn_r18_small(data.categories), None, cache_bytes=2 * HEIGHT * WIDTH * 3 + 5000
    )
    reference = [_set(data, None).example(i, 0).image for i in range(3)]
    for index in (0, 1, 2, 0, 0, 2, 1):
        assert torch.equal(training.example(index, 0).image, reference[index])
        assert 0 < training._cached_bytes <= training.cache_bytes
        assert sum(p.nbytes for p in training._cache.values()) == training._cached_bytes
    nothing = TrainingSet(data, maskrcnn_r18_small(data.categories), None, cache_bytes=0)
    assert torch.equal(nothing.example(0, 0).image, reference[0])
    assert not nothing._cache


def test_categories_that_are_not_the_models_are_refused(data):
    with pytest.raises(DataError, match="2 categories, the model has 90"):
        TrainingSet(data, maskrcnn_r50_fpn_torchvision(), None)
    with pytest.raises(
        DataError, match=r'category "box" \(label 0\) has 0 keypoints, the model has 5'
    ):
        TrainingSet(data, maskrcnn_r18_small(2, keypoints=5), None)


def test_collate_pads_and_keeps_seeds_and_ids(data):
    training = _set(data, replace(STILL, crop=50))
    batch, truth = collate([training.example(i, 40 + i) for i in range(3)], 32)
    assert batch.images.shape == (3, 3, 64, 64)
    assert batch.sizes.tolist() == [[50, 50]] * 3
    assert batch.seeds.tolist() == [40, 41, 42]
    assert batch.image_ids == (70, 71, 72)
    assert truth.valid.sum(1).tolist()[2] == 0
    assert truth.keypoints.shape[2:] == (3, 3)
