"""Copy-paste: the truth lies on the image that results, whatever is pasted over what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from coco_samples import HEIGHT, WIDTH, content, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset, DataError
from maskrcnn.augmentation.augment import AugmentedView
from maskrcnn.augmentation.copy_paste import draw_paste_position, hide, paste
from maskrcnn.augmentation.loader import TrainingLoader
from maskrcnn.augmentation.moved_masks import Pixels
from maskrcnn.augmentation.objects import ViewMask, ViewObjects
from maskrcnn.augmentation.training_set import TrainingSet
from maskrcnn.config import AugmentConfig
from maskrcnn.presets import maskrcnn_r18_small

STILL = AugmentConfig(flip_horizontal=0.0, scale=(1.0, 1.0), copy_paste=1.0)


def objects_of(
    masks: list[np.ndarray], keypoints: np.ndarray | None = None, ignore: tuple[int, ...] = ()
) -> ViewObjects:
    """Whole-pixel masks [h, w] as objects with the boxes around them; label i is the i-th."""
    count = len(masks)
    bounds = [
        (
            np.flatnonzero(m.any(0))[0],
            np.flatnonzero(m.any(1))[0],
            np.flatnonzero(m.any(0))[-1] + 1,
            np.flatnonzero(m.any(1))[-1] + 1,
        )
        for m in masks
    ]
    return ViewObjects(
        boxes=np.array(bounds, float).reshape(-1, 4),
        has_box=np.ones(count, bool),
        labels=np.arange(count),
        ignore=np.isin(np.arange(count), ignore),
        masks=[ViewMask(Pixels(m, 0, 0), np.eye(3)) for m in masks],
        keypoints=np.zeros((count, 0, 3)) if keypoints is None else keypoints,
        points=np.zeros((count, 0, 3)),
        spans=np.zeros((count, 2), bool),
        annotation_ids=np.arange(count),
    )


@given(
    seed=st.integers(0, 10**6),
    host=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    source=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    counts=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    density=st.sampled_from((0.02, 0.3, 0.95)),
)
@settings(max_examples=150, deadline=None)
def test_a_paste_equals_a_loop_over_pixels(seed, host, source, counts, density):
    rng = np.random.default_rng(seed)
    source = (min(source[0], host[0]), min(source[1], host[1]))
    corner = (
        int(rng.integers(host[1] - source[1] + 1)),
        int(rng.integers(host[0] - source[0] + 1)),
    )
    ours, theirs = (
        [m for m in (rng.random(size) < density for _ in range(n)) if m.any()]
        for size, n in ((host, counts[0]), (source, counts[1]))
    )
    image, other = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in (host, source))
    before = image.copy()

    pasted_image, result = paste(image, objects_of(ours), other, objects_of(theirs), corner, rng)

    assert (image == before).all()
    chosen = result.labels[len(ours) :].tolist()
    assert len(set(chosen)) == len(chosen)
    assert bool(chosen) == bool(theirs)
    over = np.zeros(host, bool)
    for y in range(host[0]):
        for x in range(host[1]):
            u, v = x - corner[0], y - corner[1]
            inside = 0 <= u < source[1] and 0 <= v < source[0]
            over[y, x] = inside and any(theirs[i][v, u] for i in chosen)
            assert (pasted_image[y, x] == (other[v, u] if over[y, x] else before[y, x])).all()
    for i, mask in enumerate(ours):
        left = mask & ~over
        is_visible = (result.boxes[i, 2:] > result.boxes[i, :2]).all()
        assert is_visible == left.any()
        if is_visible:
            ys, xs = np.nonzero(left)
            assert result.boxes[i].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert result.ignore[i] == (left.sum() < 0.1 * mask.sum())
            assert (dense(result, i, host) == left).all()
    for row, label in enumerate(chosen, start=len(ours)):
        whole = np.zeros(host, bool)
        whole[corner[1] : corner[1] + source[0], corner[0] : corner[0] + source[1]] = theirs[label]
        assert (dense(result, row, host) == whole).all()


def dense(objects: ViewObjects, row: int, size: tuple[int, int]) -> np.ndarray:
    """An object's mask at whole pixels."""
    side = max(size)
    return objects.masks[row].coverage((0, 0, side, side), side)[: size[0], : size[1]] == 255


@given(
    a=st.tuples(*[st.integers(1, 30)] * 2),
    b=st.tuples(*[st.integers(1, 30)] * 2),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_a_pasted_view_lies_inside_the_other_or_covers_it(a, b, seed):
    part, (x, y) = draw_paste_position(AugmentedView(np.eye(3), a), b, np.random.default_rng(seed))
    assert part.size == (min(a[0], b[0]), min(a[1], b[1]))
    assert 0 <= x <= b[1] - part.size[1]
    assert 0 <= y <= b[0] - part.size[0]
    left, top = -part.matrix[:2, 2]
    assert 0 <= left <= a[1] - part.size[1]
    assert 0 <= top <= a[0] - part.size[0]
    assert part.whole == (part.size == a)


def test_boxes_keep_their_sides_where_nothing_was_pasted():
    """Annotated boxes need not be tight, and masks have edges between pixels."""
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    loose = replace(objects_of([mask]), boxes=np.array([[3.2, 4.5, 16.7, 15.5]]))
    over = np.zeros((20, 20), bool)
    over[:, 12:] = True
    assert hide(loose, over).boxes.tolist() == [[3.2, 4.5, 12, 15.5]]
    over[:] = False
    over[8:12, 8:12] = True
    assert hide(loose, over).boxes.tolist() == loose.boxes.tolist()


def test_objects_without_a_mask_are_covered_by_their_boxes():
    boxes = replace(objects_of([np.ones((10, 10), bool)]), masks=[None])
    over = np.zeros((10, 10), bool)
    over[:, 6:] = True
    assert hide(boxes, over).boxes.tolist() == [[0, 0, 6, 10]]
    assert not hide(boxes, over).ignore[0]
    over[:, 4:] = True
    assert hide(boxes, over).ignore[0]  # the visible rest may be background
    hull = replace(boxes, has_box=np.array([False]))
    assert hide(hull, over).boxes.tolist() == [[0, 0, 10, 10]]
    over[:] = True
    assert len(hide(boxes, over).visible) == len(hide(hull, over).visible) == 0


def test_regions_to_ignore_are_never_pasted_and_shrink_to_their_visible_part():
    crowd = objects_of([np.ones((10, 10), bool)], ignore=(0,))
    rng = np.random.default_rng(0)
    image, other = np.zeros((10, 10, 3), np.uint8), np.full((10, 10, 3), 9, np.uint8)
    pasted, result = paste(image, crowd, other, crowd, (0, 0), rng)
    assert not pasted.any()
    assert len(result.boxes) == 1
    pasted, result = paste(
        image, crowd, other[:, :4], objects_of([np.ones((10, 4), bool)]), (6, 0), rng
    )
    assert (pasted[:, 6:] == 9).all()
    assert result.boxes.tolist() == [[0, 0, 6, 10], [6, 0, 10, 10]]
    assert result.ignore.tolist() == [True, False]


def test_covered_keypoints_become_hidden_ones():
    keypoints = np.array(
        [[[2.5, 2.5, 2], [7.5, 2.5, 2], [7.5, 3.5, 1], [0, 0, 0], [10, 10, 2]]], float
    )
    person = objects_of([np.ones((10, 10), bool)], keypoints)
    over = np.zeros((10, 10), bool)
    over[:, 5:] = True
    over[0, 0] = True
    left = hide(person, over).keypoints
    assert left[0, :, 2].tolist() == [
        2,
        1,
        1,
        0,
        1,
    ]  # the last lies on the edge of the image, in its last pixel
    assert (left[0, :, :2] == keypoints[0, :, :2]).all()


COLORS = np.array(
    [[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10], [250, 10, 250], [10, 250, 250]],
    np.uint8,
)


@pytest.fixture
def colored(tmp_path) -> CocoDataset:
    """Two images of three objects; each object has a color and a category of its own."""
    rng = np.random.default_rng(3)
    masks = [
        [
            rng.random((HEIGHT // 10, WIDTH // 10)).repeat(10, 0).repeat(10, 1) < 0.25
            for _ in range(3)
        ]
        for _ in range(2)
    ]
    annotations = []
    for k, three in enumerate(masks):
        image, free = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.ones((HEIGHT, WIDTH), bool)
        for j, mask in enumerate(three):
            label = 3 * k + j
            image[mask & free] = COLORS[label]
            annotations.append(
                {
                    "id": label + 1,
                    "image_id": k,
                    "category_id": label + 1,
                    "segmentation": rle.encode(mask & free),
                }
            )
            free &= ~mask
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    images = [
        {"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH} for k in range(2)
    ]
    categories = [{"id": i + 1, "name": f"color {i}"} for i in range(6)]
    return CocoDataset(
        {"images": images, "annotations": annotations, "categories": categories}, tmp_path
    )


@pytest.mark.parametrize("crop", [None, 35])
def test_the_truth_of_an_example_lies_on_its_own_color(colored, crop):
    """At scale 1, flipped, turned and cropped: the pixels in the masks are those with the color of their category."""
    config = maskrcnn_r18_small(colored.categories)
    config = replace(config, mask=replace(config.mask, truth_size=160))
    training = TrainingSet(
        colored, config, replace(STILL, flip_horizontal=0.5, right_angles=True, crop=crop)
    )
    exchanged = 0
    for seed in range(30):
        example = training.example(seed % 2, seed)
        image, truth = example.image.permute(1, 2, 0).numpy(), example.truth
        in_truth = np.full(image.shape[:2], -1)
        for box, label, mask in zip(
            truth.boxes[0].numpy(), truth.labels[0].tolist(), truth.masks[0].numpy(), strict=True
        ):
            x0, y0, x1, y1 = box.round().astype(int)
            assert np.allclose(box, (x0, y0, x1, y1))
            rows, columns = (
                ((np.arange(n) + 0.5) / n * 160).astype(int) for n in (y1 - y0, x1 - x0)
            )
            inside = mask[np.ix_(rows, columns)] >= 128
            assert (in_truth[y0:y1, x0:x1][inside] < 0).all()
            in_truth[y0:y1, x0:x1][inside] = label
        wanted = np.full(image.shape[:2], -1)
        for label, color in enumerate(COLORS):
            wanted[(image == color).all(axis=2)] = label
        assert (in_truth == wanted).all()
        exchanged += len({label // 3 for label in truth.labels[0].tolist()}) == 2
    assert exchanged > 5


@pytest.fixture
def data(tmp_path) -> CocoDataset:
    return CocoDataset(write(tmp_path), tmp_path)


@pytest.mark.parametrize("choices", [1, 3])
def test_pasted_examples_are_a_function_of_index_and_seed_in_any_process(data, choices):
    wild = AugmentConfig(
        scale=(0.5, 2.0),
        rotation=30,
        crop=50,
        right_angles=True,
        brightness=0.3,
        copy_paste=0.8,
        copy_paste_choices=choices,
    )
    config = maskrcnn_r18_small(data.categories)
    first, second = TrainingSet(data, config, wild), TrainingSet(data, config, wild, cache_bytes=0)
    plan = [[(i, 7 + i), (2 - i, 90)] for i in range(3)]
    second.example(1, 5)  # another history
    for workers, training in ((1, first), (0, second)):
        batches = list(TrainingLoader(training, plan, workers))
        for pairs, (batch, truth) in zip(plan, batches, strict=True):
            for row, (index, seed) in enumerate(pairs):
                one = first.example(index, seed)
                height, width = one.image.shape[1:]
                assert torch.equal(
                    batch.images[row, :, :height, :width], one.image.to(batch.images.dtype)
                )
                count = one.truth.boxes.shape[1]
                assert torch.equal(truth.boxes[row, :count], one.truth.boxes[0])
                assert torch.equal(truth.masks[row, :count], one.truth.masks[0])


def test_copy_paste_does_not_change_examples_without_it(data):
    """Its draws come after all others."""
    wild = AugmentConfig(scale=(0.5, 2.0), crop=50, brightness=0.3)
    config = maskrcnn_r18_small(data.categories)
    plain, rare = (TrainingSet(data, config, replace(wild, copy_paste=p)) for p in (0.0, 1e-9))
    for seed in range(5):
        assert torch.equal(plain.example(0, seed).image, rare.example(0, seed).image)


def test_objects_come_from_an_image_of_similar_color_or_from_the_image_itself(tmp_path):
    write(tmp_path)
    for i, gray in enumerate((10, 240, 25)):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), gray, np.uint8)).save(tmp_path / f"{i}.png")
    data = CocoDataset(content(), tmp_path)
    training = TrainingSet(
        data, maskrcnn_r18_small(data.categories), replace(STILL, copy_paste_choices=2)
    )
    drawn = {
        index: {training._partner(index, np.random.default_rng(seed)) for seed in range(40)}
        for index in range(3)
    }
    assert drawn == {0: {0, 2}, 1: {1}, 2: {0, 2}}
    free = TrainingSet(data, maskrcnn_r18_small(data.categories), STILL)
    assert {free._partner(1, np.random.default_rng(seed)) for seed in range(40)} == {0, 1, 2}


def test_images_annotated_for_other_categories_exchange_no_objects(tmp_path):
    part = content()
    part["images"][1]["labeled_categories"] = [4, 9]
    part["images"][2]["labeled_categories"] = [4]
    write(tmp_path)
    data = CocoDataset(part, tmp_path)
    training = TrainingSet(data, maskrcnn_r18_small(data.categories), STILL)
    drawn = {
        index: {training._partner(index, np.random.default_rng(seed)) for seed in range(40)}
        for index in range(3)
    }
    assert drawn == {0: {0, 1}, 1: {0, 1}, 2: {2}}


def test_copy_paste_that_is_impossible_is_refused(tmp_path):
    write(tmp_path)
    keypoints = content()
    keypoints["annotations"] = [
        a for a in keypoints["annotations"] if not (a.keys() & {"bbox", "segmentation"})
    ]
    data = CocoDataset(keypoints, tmp_path)
    with pytest.raises(DataError, match="no object has a mask or a box to paste"):
        TrainingSet(data, maskrcnn_r18_small(data.categories), STILL)
    data = CocoDataset(content(), tmp_path)
    with pytest.raises(ValueError, match="copy_paste_choices: expected at least 1, got 0"):
        TrainingSet(data, maskrcnn_r18_small(data.categories), replace(STILL, copy_paste_choices=0))
