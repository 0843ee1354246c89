"""Test-time augmentation: views are undone exactly, and detections are merged object by object."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_config
from PIL import Image

from maskrcnn.augmentation import geometry
from maskrcnn.config import Category, ModelConfig
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.instances import Instances
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.prediction.predict_files import predict_files
from maskrcnn.prediction.predictor import Predictor, predict
from maskrcnn.prediction.tta import (
    TTAView,
    _move,
    merge_views,
    parse_tta,
    predict_views,
    view_of_batch,
)
from maskrcnn.structures import Batch, Detections

ALL = [TTAView(1.0, mirrored, turns) for mirrored, turns in product((False, True), range(4))]
CATEGORIES = (
    Category("stone", 4),
    Category("fly", 2, keypoints=("left", "right", "tail"), flip=(1, 0, 2)),
)


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    torch.manual_seed(2)
    config = tiny_config(CATEGORIES)
    return MaskRCNN.from_config(replace(config, box=replace(config.box, max_detections=12))).eval()


def make_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_equal(a: Instances, b: Instances) -> None:
    assert len(a) == len(b) > 0
    for name in ("boxes", "scores", "labels", "mask_grids", "keypoints", "keypoint_logits"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("view", ALL)
def test_the_matrix_of_a_view_gives_the_positions_of_its_pixels(view: TTAView) -> None:
    image = torch.arange(7 * 5.0).reshape(1, 7, 5)
    viewed, matrix = view.pixels(image)[0].numpy(), view.matrix((7, 5)).double().numpy()
    for y, x in product(range(7), range(5)):
        u, v = geometry.move_points(matrix, np.array([x + 0.5, y + 0.5])) - 0.5
        assert viewed[round(v), round(u)] == image[0, y, x]


@pytest.mark.parametrize("view", [replace(v, scale=s) for v, s in product(ALL, (1.0, 0.8, 1.25))])
def test_views_can_be_undone(view: TTAView) -> None:
    grid = torch.rand(6, 6)
    assert torch.equal(
        replace(view, scale=1.0).undo(replace(view, scale=1.0).pixels(grid[None])), grid[None]
    )
    boxes = torch.tensor([[[3.0, 4, 17, 9], [0, 0, 40, 30]]])
    matrix = view.matrix((30, 40))[None]
    moved = _move(matrix, boxes)
    assert np.allclose(
        moved[0],
        geometry.move_boxes(matrix[0].double().numpy(), boxes[0].double().numpy()),
        atol=1e-4,
    )
    assert (moved[0, 1, :2].abs() < 1e-4).all()
    assert [round(v) for v in moved[0, 1, 2:].tolist()] == list(
        view.pixels(torch.zeros(1, 30, 40)).shape[:0:-1]
    )
    torch.testing.assert_close(_move(torch.linalg.inv(matrix), moved), boxes, atol=1e-4, rtol=0)


def test_a_resized_view_shows_the_same_positions() -> None:
    image = torch.zeros(1, 60, 80)
    image[0, 20:30, 50:70] = 1
    for scale in (0.8, 1.25):
        view = TTAView(scale, mirrored=True, turns=1)
        viewed = view.pixels(image)[0]
        ys, xs = (viewed > 0.5).nonzero(as_tuple=True)
        wanted = _move(view.matrix((60, 80))[None], torch.tensor([[[50.0, 20, 70, 30]]]))[0, 0]
        assert (
            torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - wanted
        ).abs().max() <= 0.6


class Literally:
    """A network that sees exactly: an object is what is not black, its mask the red it shows, its two keypoints the blue dots, the left one on the left.

    In a mirrored image it therefore calls the right keypoint left. It is surest of what it sees upright.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.mask_head, self.keypoint_head = True, self

    def pyramid(self, batch: Batch) -> list[torch.Tensor]:
        return [batch.images]

    def detect(self, levels: list[torch.Tensor], batch: Batch) -> Detections:
        boxes = []
        for image, (height, width) in zip(levels[0], batch.sizes.tolist(), strict=True):
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()
            ys, xs = image.sum(dim=0).nonzero(as_tuple=True)
            boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        count = len(boxes)
        scores = torch.full((count, 1), 0.5 + 0.1 * (levels[0].shape[3] > levels[0].shape[2]))
        return Detections(
            torch.tensor(boxes).float()[:, None],
            scores,
            torch.ones(count, 1, dtype=torch.int64),
            torch.ones(count, 1, dtype=torch.bool),
        )

    def _crop(
        self, levels: list[torch.Tensor], boxes: torch.Tensor, image: torch.Tensor, channel: int
    ) -> torch.Tensor:
        whole = [
            levels[0][b, channel, y0:y1, x0:x1]
            for b, (x0, y0, x1, y1) in zip(image, boxes.round().int().tolist(), strict=True)
        ]
        return torch.nn.functional.interpolate(
            torch.stack(whole)[:, None], size=(8, 8), mode="nearest"
        )[:, 0]

    def predict_masks(self, levels, boxes, labels, image) -> torch.Tensor:
        return self._crop(levels, boxes, image, 0)

    def predict_heatmaps(self, levels, boxes, image) -> torch.Tensor:
        maps = torch.zeros(len(boxes), 3, 8, 8)
        for heatmap, dots in zip(maps, self._crop(levels, boxes, image, 2), strict=True):
            for keypoint, (y, x) in enumerate(
                sorted(dots.nonzero().tolist(), key=lambda point: point[1])
            ):
                heatmap[keypoint, y, x] = 1
        return maps

    def decode(self, heatmaps, boxes, labels) -> tuple[torch.Tensor, torch.Tensor]:
        moments = heatmaps.flatten(2) @ (
            torch.arange(64.0)[:, None] ** torch.arange(3)
        )  # differ where the maps do
        return moments, heatmaps.amax(dim=(2, 3))


@pytest.mark.parametrize("words", ["flip", "turns", "flip,turns"])
def test_views_of_an_exact_network_agree(words: str) -> None:
    """Masks, boxes and keypoints of all views coincide, in a batch of images of different sizes."""
    images = []
    for size, (x, y) in (((40, 60), (11, 7)), ((56, 90), (30, 25))):
        image = torch.zeros(3, *size)
        image[1, y : y + 16, x : x + 24] = 1  # green: an object
        image[0, y : y + 16, x : x + 24] = (
            (torch.rand(8, 8, generator=torch.Generator().manual_seed(x)) > 0.5)
            .repeat_interleave(2, 0)
            .repeat_interleave(3, 1)
        )
        image[2, y + 4 : y + 6, x + 3 : x + 6] = 1
        image[2, y + 8 : y + 10, x + 18 : x + 21] = 1
        images.append(image)
    batch = Batch.collate(images)
    network = Literally(tiny_config(CATEGORIES))
    alone = network.detect(network.pyramid(batch), batch)
    detections = predict_views(network, batch, parse_tta(words))  # ty: ignore[invalid-argument-type]
    slot = detections.valid.nonzero(as_tuple=True)
    assert detections.valid.sum(dim=1).tolist() == [1, 1]
    torch.testing.assert_close(detections.boxes[slot], alone.boxes[:, 0])
    assert detections.scores[slot].tolist() == pytest.approx([0.6, 0.6])
    assert torch.equal(
        detections.masks[slot],
        network.predict_masks(network.pyramid(batch), alone.boxes[:, 0], None, torch.arange(2)),
    )
    if words == "flip":  # rotated by a right angle, this network swaps left and right
        wanted, _ = network.decode(
            network.predict_heatmaps(network.pyramid(batch), alone.boxes[:, 0], torch.arange(2)),
            None,
            None,
        )
        assert torch.equal(detections.keypoints[slot], wanted)


def test_the_plain_view_alone_equals_the_network(model: MaskRCNN) -> None:
    predictor = Predictor(model, min_score=0.05)
    plain = predictor(make_image(64, 96))
    predictor.engine.views = (TTAView(),)
    viewed = predictor(make_image(64, 96))
    assert len(plain) > 3
    for name in ("boxes", "scores", "labels", "mask_grids", "keypoints", "keypoint_logits"):
        torch.testing.assert_close(
            getattr(viewed, name), getattr(plain, name), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("words", "view"),
    [
        ("flip", TTAView(mirrored=True)),
        ("flip,turns", TTAView(mirrored=True, turns=1)),
        ("turns", TTAView(turns=3)),
    ],
)
def test_an_image_predicted_in_all_views_has_the_same_objects_in_each(
    model: MaskRCNN, words: str, view: TTAView
) -> None:
    """Detections in a flipped or rotated image are the flipped or rotated detections of the original."""
    upright = make_image(64, 64, seed=2)
    turned = (
        view.pixels(torch.from_numpy(upright).permute(2, 0, 1))
        .permute(1, 2, 0)
        .contiguous()
        .numpy()
    )
    a, b = (predict(model, image, tta=words) for image in (upright, turned))
    matrix = view.matrix((64, 64))
    moved = _move(matrix[None], a.boxes[None])[0]
    assert len(a) == len(b) > 3
    order = [int((b.boxes - box).abs().sum(dim=1).argmin()) for box in moved]
    b = b[order]
    torch.testing.assert_close(b.boxes, moved, atol=0.02, rtol=0)
    torch.testing.assert_close(b.scores, a.scores, atol=1e-4, rtol=0)
    assert torch.equal(b.labels, a.labels)
    torch.testing.assert_close(view.undo(b.mask_grids), a.mask_grids, atol=1e-3, rtol=0)
    flies = a.labels == 1
    assert flies.any()
    keypoints = a.keypoints[flies]
    swapped = keypoints[:, [1, 0, 2]] if view.mirrored else keypoints
    torch.testing.assert_close(
        b.keypoint_logits[flies],
        a.keypoint_logits[flies][:, [1, 0, 2] if view.mirrored else [0, 1, 2]],
        atol=1e-3,
        rtol=0,
    )
    points = swapped[..., :2] @ matrix[:2, :2].T + matrix[:2, 2]
    torch.testing.assert_close(b.keypoints[flies][..., :2], points, atol=0.1, rtol=0)


def test_the_predictions_for_an_image_do_not_depend_on_its_neighbors(model: MaskRCNN) -> None:
    images = [
        make_image(64, 64, 2),
        make_image(33, 50, 3),
    ]  # one padded shape, but not when each is shrunk by itself
    alone = [predict(model, p, tta="flip,scales") for p in images]
    together = list(predict(model, images, batch_size=2, tta="flip,scales"))
    for a, b in zip(alone, together, strict=True):
        assert_equal(b, a)


def test_a_view_of_bytes_is_not_rounded_to_them() -> None:
    pixels = torch.randint(256, (3, 40, 60), dtype=torch.uint8)
    by_bytes, by_numbers = (
        view_of_batch(Batch.collate([p]), TTAView(0.8), 32)[0].images
        for p in (pixels, pixels.float())
    )
    assert torch.equal(by_bytes, by_numbers)


def test_views_of_a_batch_are_padded_by_its_shape() -> None:
    batch = Batch.collate([torch.ones(3, 40, 60), torch.ones(3, 33, 64)])
    viewed, matrices = view_of_batch(batch, TTAView(0.8, turns=1), 32)
    assert viewed.images.shape == (2, 3, 64, 64)  # 64 x 64 at 0.8 is 51.2
    assert viewed.sizes.tolist() == [[48, 32], [51, 26]]
    assert [int(image.count_nonzero()) for image in viewed.images] == [3 * 48 * 32, 3 * 51 * 26]
    corners = matrices @ torch.tensor([[60.0, 0, 1], [64, 0, 1]])[..., None]
    torch.testing.assert_close(
        corners[:, :2, 0], torch.zeros(2, 2), atol=1e-4, rtol=0
    )  # the upper right corner comes to the upper left


def test_the_best_view_of_each_object_is_kept() -> None:
    config = tiny_config(3)
    config = replace(config, box=replace(config.box, max_detections=3))

    def detections_of(*rows: tuple[float, float, int]) -> Detections:
        x, scores, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
        boxes = torch.stack([x, torch.zeros_like(x), x + 10, torch.full_like(x, 10)], dim=-1)
        return Detections(
            boxes[None], scores[None], labels[None], torch.ones(1, len(rows), dtype=torch.bool)
        )

    batch = Batch.collate([torch.zeros(3, 20, 64)])
    merged = merge_views(
        [
            detections_of((0.0, 0.9, 0), (30.0, 0.3, 1)),
            detections_of((1.0, 0.95, 0), (31.0, 0.2, 1), (30.0, 0.5, 2), (50.0, 0.1, 0)),
        ],
        batch,
        config,
    )
    assert merged.boxes[0, :, 0].tolist() == [1, 30, 30]
    assert merged.labels[0].tolist() == [0, 2, 1]
    assert merged.num_valid == 3
    one_for_all = merge_views(
        [detections_of((30.0, 0.3, 1)), detections_of((30.0, 0.5, 2))],
        batch,
        replace(config, box=replace(config.box, nms="all")),
    )
    assert one_for_all.valid.tolist() == [[True, False, False]]
    assert one_for_all.labels[0, 0] == 2


def test_images_without_objects_and_models_without_heads_are_predicted(model: MaskRCNN) -> None:
    boxes_only = MaskRCNN.from_config(replace(model.config, mask=None, keypoint=None)).eval()
    result = predict(boxes_only, make_image(64, 64), tta="flip,scales")
    assert result.mask_grids is None
    assert result.keypoints is None
    sure = MaskRCNN.from_config(
        replace(model.config, box=replace(model.config.box, score_threshold=0.999))
    ).eval()
    nothing = predict(sure, make_image(64, 64), tta="flip,turns")
    assert len(nothing) == 0
    assert nothing.mask_grids.shape == (0, 28, 28)


def test_names_of_views_are_parsed() -> None:
    assert parse_tta(None) == ()
    assert parse_tta("flip") == (TTAView(), TTAView(mirrored=True))
    assert len(parse_tta("flip, turns,scales")) == 24
    assert parse_tta("scales")[0] == TTAView()
    with pytest.raises(
        ValueError,
        match='unknown value "rotate"; choose one or more of these, separated by commas: flip = also mir',
    ):
        parse_tta("flip,rotate")


def test_prediction_of_files_and_evaluation_use_the_views(model: MaskRCNN, tmp_path: Path) -> None:
    Image.fromarray(make_image(64, 64)).save(tmp_path / "a.png")
    summary = predict_files(
        Predictor(model, tta="flip"), [tmp_path / "a.png"], tmp_path / "out", progress=False
    )
    assert summary.objects.total() == len(predict(model, make_image(64, 64), tta="flip"))
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "categories": [{"id": 4, "name": "stone"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 4,
                "bbox": [5, 5, 30, 30],
                "area": 900,
                "iscrowd": 0,
            }
        ],
    }
    with pytest.warns(UserWarning, match="detections of fly are not evaluated"):
        evaluate(Predictor(model, tta="flip"), truth, tmp_path, out=tmp_path / "evaluation")
    scores = [
        entry["score"] for entry in json.loads((tmp_path / "evaluation/results.json").read_text())
    ]
    viewed = predict(model, make_image(64, 64), tta="flip")
    assert scores == pytest.approx(viewed.scores[viewed.labels == 0].tolist(), abs=1e-4)
