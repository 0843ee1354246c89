"""Points that are labeled instead of masks train the mask head."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coco_samples import content, write
from models import tiny_config
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.annotation import KEYPOINT_OFFSET
from maskrcnn.annotations.point_labels import with_points
from maskrcnn.augmentation.training_set import TrainingSet, collate
from maskrcnn.cli import run
from maskrcnn.config import AugmentConfig, MaskHeadConfig
from maskrcnn.dataset_checks.check_dataset import check_dataset
from maskrcnn.dataset_checks.samples import drawn_image
from maskrcnn.draw.points import BESIDE, ON_OBJECT
from maskrcnn.model.box_losses import BoxTargets, box_losses
from maskrcnn.model.mask_head import MaskHead
from maskrcnn.model.point_losses import PointTargets, has_points, point_losses
from maskrcnn.recipe.recipe import choose_recipe
from maskrcnn.structures import Truth
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.training.examples import draw_example
from maskrcnn.weights.heads import parts_of

POINTS = 10


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 6, size=96)


@pytest.fixture(scope="module")
def masks(scenes: Path) -> mr.CocoDataset:
    return mr.load_dataset(scenes)


@pytest.fixture(scope="module")
def file(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scenes, converted."""
    out = tmp_path_factory.mktemp("points") / "points.json"
    words = ["convert", str(scenes), str(out), "--format", "coco", "--points", str(POINTS)]
    assert run(words) == 0
    return out


@pytest.fixture(scope="module")
def pointed(file: Path) -> mr.CocoDataset:
    return mr.load_dataset(file)


def annotated(tmp_path: Path, **changes: object) -> mr.CocoDataset:
    """One annotation of a small data set, changed."""
    changed = content()
    changed["annotations"] = [
        {**changed["annotations"][0], "segmentation": [], **changes},
        *changed["annotations"][1:],
    ]
    return mr.load_dataset(write(tmp_path, changed), tmp_path)


def test_points_are_read_at_the_centers_of_their_pixels(tmp_path) -> None:
    first = content()["annotations"][0]
    x, y = (int(v) for v in first["bbox"][:2])
    data = annotated(tmp_path, point_coords=[[x, y], [x + 1, y]], point_labels=[0, 1])
    (points,) = (
        a.points for i in range(len(data)) for a in data[i].annotations if a.points is not None
    )
    expected = [
        [x + KEYPOINT_OFFSET, y + KEYPOINT_OFFSET, 0],
        [x + 1 + KEYPOINT_OFFSET, y + KEYPOINT_OFFSET, 1],
    ]
    assert points.tolist() == expected
    assert not any("point_coords" in str(note) for note in data.notes)


@pytest.mark.parametrize(
    ("coords", "labels", "says"),
    [
        ([[1, 2]], [0, 1], "1 point_coords and 2 point_labels"),
        ([[1, 2, 3]], [0], r"point \[1, 2, 3\] with the label 0"),
        ([[1, float("nan")]], [0], "with the label 0"),
        ([[1, 2]], [2], "with the label 2"),
        ({"x": 1}, [1], "point_coords is"),
        ([[1, 2]], None, "point_labels None"),
        (None, [1], "point_coords is None"),
    ],
)
def test_broken_points_are_named(tmp_path, coords, labels, says) -> None:
    with pytest.raises(mr.DataError, match=says):
        annotated(tmp_path, point_coords=coords, point_labels=labels)


def test_points_outside_the_image_are_not_used_and_named(tmp_path) -> None:
    data = annotated(tmp_path, point_coords=[[-5, 3], [9999, 3]], point_labels=[1, 1])
    assert "labeled point outside the image" in data.describe_warnings()
    assert all(a.points is None for i in range(len(data)) for a in data[i].annotations)


def test_the_loss_at_points_equals_a_loop() -> None:
    """Bilinear between the centers of the cells, constant beyond them; outside the RoI nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 4, generator=generator)
    positions = torch.rand(3, 5, 2, generator=generator) * 1.2 - 0.1
    labels = torch.randint(0, 3, (3, 5), generator=generator).float()
    labels[2] = 0

    losses, has_any = point_losses(
        logits, PointTargets(positions, labels, torch.ones(3, dtype=torch.bool))
    )

    expected = []
    for k in range(3):
        terms = []
        for (x, y), label in zip(positions[k].tolist(), labels[k].tolist(), strict=True):
            if not (label and 0 <= x <= 1 and 0 <= y <= 1):
                continue
            u, v = min(max(x * 4 - 0.5, 0), 3), min(max(y * 4 - 0.5, 0), 3)
            left, top = min(int(u), 2), min(int(v), 2)
            a, b = u - left, v - top
            cell = logits[k, top : top + 2, left : left + 2].double()
            value = (1 - b) * ((1 - a) * cell[0, 0] + a * cell[0, 1]) + b * (
                (1 - a) * cell[1, 0] + a * cell[1, 1]
            )
            terms.append(F.softplus(-value if label == 2 else value))
        expected.append(float(sum(terms) / len(terms)) if terms else 0.0)
    assert has_any.tolist() == [True, True, False]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)


def test_conversion_draws_points_in_the_box_and_labels_them_by_the_mask(
    masks, pointed, file
) -> None:
    number = beside = 0
    for i in range(len(masks)):
        for with_mask, with_labels in zip(
            masks[i].annotations, pointed[i].annotations, strict=True
        ):
            if with_mask.ignore:
                continue
            points = with_labels.points
            assert with_labels.mask_area is None
            assert len(points) == POINTS
            assert len({tuple(p) for p in points[:, :2]}) == POINTS
            x0, y0, x1, y1 = with_mask.box
            assert ((points[:, :2] >= (x0 - 1, y0 - 1)) & (points[:, :2] <= (x1 + 1, y1 + 1))).all()
            number += len(points)
            beside += (points[:, 2] == 0).sum()
    assert 0.1 < beside / number < 0.9
    again = with_points(masks.content(), POINTS)["annotations"]
    stored = json.loads(file.read_text())["annotations"]
    assert [a.get("point_labels") for a in again] == [a.get("point_labels") for a in stored]


def test_masks_without_boxes_become_points_in_the_box_around_them() -> None:
    """As the formats with polygons alone are read."""
    image = {"id": 1, "file_name": "a.png", "width": 20, "height": 16}
    mask = np.zeros((16, 20), bool)
    mask[2:9, 3:12] = True
    shapes = [[[3, 2, 12, 2, 12, 9], [3, 2, 12, 9, 3, 9]], rle.encode(mask)]
    bare = [
        {"id": n, "image_id": 1, "category_id": 1, "segmentation": shape}
        for n, shape in enumerate(shapes, start=1)
    ]
    made = with_points({"images": [image], "annotations": bare, "categories": []}, POINTS)
    for annotation in made["annotations"]:
        assert annotation["bbox"] == [3, 2, 9, 7]
        assert annotation["point_labels"] == [1] * POINTS
        assert "segmentation" not in annotation


def test_the_page_of_check_draws_points(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "home"))
    data = annotated(tmp_path, point_coords=[[14, 12], [38, 33]], point_labels=[1, 0])
    url = drawn_image(data, 0)
    assert url is not None
    drawn = Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    factor = drawn.width / data.size(0)[1]
    for x, y, color in ((14.5, 12.5, ON_OBJECT), (38.5, 33.5, BESIDE)):
        pixel = drawn.getpixel((round(x * factor), round(y * factor)))
        assert np.abs(np.subtract(pixel, color)).max() < 60, (x, y)  # JPEG blurs colors

    check_dataset(data, decode_images=False, html=tmp_path / "page.html", progress=False)
    page = (tmp_path / "page.html").read_text()
    assert "1 with labeled points" in page
    assert "green on their object and red beside it" in page


def test_other_formats_report_that_points_are_lost(pointed, tmp_path) -> None:
    with pytest.raises(ValueError, match='expected the format "coco"'):
        mr.convert_annotations(pointed, tmp_path / "a", "labelme", points=3)
    assert "labeled points" in str(mr.convert_annotations(pointed, tmp_path / "b", "labelme"))


def test_points_stay_on_their_objects_under_augmentation(masks, pointed) -> None:
    """Wherever a view moves an object, its points are on the part of the mask that they label."""
    model = replace(tiny_config(masks.categories), categories=masks.categories, keypoint=None)
    augment = AugmentConfig(crop=64, scale=(0.7, 1.4), rotation=30, right_angles=True)
    compared = wrong = 0
    for index in range(len(masks)):
        for seed in range(4):
            full = TrainingSet(masks, model, augment).example(index, seed)
            weak = TrainingSet(pointed, model, augment).example(index, seed)
            assert torch.equal(full.image, weak.image)
            for label, points in zip(weak.truth.labels[0], weak.truth.points[0], strict=True):
                points = points[points[:, 2] > 0]
                for x, y, code in points.tolist():
                    inside = []
                    for box, own, grid in zip(
                        full.truth.boxes[0], full.truth.labels[0], full.truth.masks[0], strict=True
                    ):
                        u = (x - box[0]) / (box[2] - box[0])
                        v = (y - box[1]) / (box[3] - box[1])
                        if own == label and 0 <= u < 1 and 0 <= v < 1:
                            side = len(grid)
                            inside.append(int(grid[int(v * side), int(u * side)]) >= 128)
                    compared += 1
                    wrong += (code > 1.5) != any(inside)
    assert compared > 300
    assert wrong / compared < 0.06  # next to an edge, or on another object of the category


def test_pasted_objects_cover_points(masks) -> None:
    from test_augmentation_copy_paste import objects_of

    from maskrcnn.augmentation.copy_paste import hide

    objects = replace(objects_of([np.ones((4, 4), bool)]), masks=[None])
    objects = replace(objects, points=np.array([[[0.5, 0.5, 2], [3.5, 3.5, 1.0]]]))
    covered = np.zeros((4, 4), bool)
    covered[:2, :2] = True
    assert hide(objects, covered).points[0, :, 2].tolist() == [0, 1]


def test_points_alone_train_the_mask_head(pointed) -> None:
    recipe = choose_recipe(pointed, device="cpu", memory=4)
    assert recipe.model.mask is not None
    assert recipe.training.augment.copy_paste
    parts = parts_of(pointed)
    assert parts.mask
    assert parts.pointed == parts.unmasked > 0
    assert f"a box and no mask, {parts.pointed} of them labeled points" in parts.box_masks

    torch.manual_seed(0)
    model = replace(tiny_config(pointed.categories), categories=pointed.categories, keypoint=None)
    network = mr.MaskRCNN.from_config(model).train()
    examples = TrainingSet(pointed, model, None)
    batch, truth = collate([examples.example(i, i) for i in range(3)], 32)
    assert has_points(truth).any()
    assert not truth.has_mask.any()

    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    values = []
    for _ in range(12):
        losses = network.losses(batch, truth)
        optimizer.zero_grad()
        losses["mask"].backward()
        optimizer.step()
        values.append(losses["mask"].item())
    assert 0.3 < values[0] < 3
    assert values[-1] < 0.8 * values[0]
    assert draw_example(examples.example(0, 0), model).getpixel((0, 0))


def test_a_box_trains_the_mask_beside_its_points() -> None:
    """The loss is the sum; a RoI in which no point lies has the loss of the box."""
    config = MaskHeadConfig(context=1.3, convs=(8,), upsample=(8,))
    head = MaskHead(8, 1, config)
    box = BoxTargets(
        covered=torch.ones(1, 2, 6),
        spans=torch.ones(1, 2, dtype=torch.bool),
        inside=torch.ones(1, 6, 6, dtype=torch.bool),
        colors=torch.rand(1, 3, 6, 6) * 100,
        shared=torch.zeros(1, 6, 6, dtype=torch.bool),
        like_background=torch.zeros(1, 6, 6, dtype=torch.bool),
        instead=torch.tensor([True]),
        with_mask=torch.tensor([False]),
    )
    logits = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0))
    points = PointTargets(torch.full((1, 3, 2), 0.4), torch.full((1, 3), 2.0), torch.tensor([True]))
    outside = points._replace(positions=points.positions + 1)
    nothing = torch.zeros(1, 6, 6), torch.tensor([True])

    at_points, _ = point_losses(logits, points)
    of_box = box_losses(logits, box, config.from_boxes, 1.0)
    assert head.loss(logits, *nothing, points, box).item() == pytest.approx(
        (at_points + of_box).item()
    )
    assert head.loss(logits, *nothing, outside, box).item() == pytest.approx(of_box.item())
    assert head.loss(logits, *nothing, points).item() == pytest.approx(at_points.item())
    assert head.loss(logits, *nothing, outside).item() == 0
    head.config = replace(config, from_boxes=replace(config.from_boxes, beside_points=0.0))
    assert head.loss(logits, *nothing, points, box).item() == pytest.approx(at_points.item())


def test_masks_points_and_nothing_in_one_batch(masks, pointed) -> None:
    model = replace(tiny_config(masks.categories), categories=masks.categories, keypoint=None)
    full = TrainingSet(masks, model, None).example(0, 0)
    weak = TrainingSet(pointed, model, None).example(1, 0)
    _, truth = collate([full, weak], 32)
    assert truth.has_mask[0].any()
    assert not has_points(truth)[0].any()
    assert has_points(truth)[1].any()
    assert (
        Truth.collate(
            [full.truth, Truth.empty(mask_size=full.truth.masks.shape[-1], keypoints=0)]
        ).points
        is None
    )
    torch.manual_seed(0)
    batch, _ = collate([full, weak], 32)
    losses = mr.MaskRCNN.from_config(model).train().losses(batch, truth)
    assert losses["mask"].item() > 0
