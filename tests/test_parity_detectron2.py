"""The public `load` and `predict` reproduce Detectron2's own predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from keypoint_parity import assert_keypoints_close, recorded_heatmaps
from pycocotools import mask as coco_mask

import maskrcnn as mr
from maskrcnn.images.read import read_image

MODELS = [
    "r50_fpn_joint",
    "r50_fpn_keypoint",
    "r50_fpn_gn_rgb",
    "r50_fpn_class_agnostic",
    "r50_c4",
    "r101_dc5",
    "x50_fpn",
]


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    return shared / "golden"


@pytest.fixture(scope="module")
def image(golden) -> np.ndarray:
    return np.asarray(read_image(golden / "image.png"))


@pytest.fixture(scope="module")
def model_folder(golden) -> Path:
    return golden / "detectron2" / "r50_fpn_joint"


@pytest.fixture(scope="module", params=MODELS)
def folder(golden, request) -> Path:
    return golden / "detectron2" / request.param


@pytest.fixture(scope="module")
def model(folder) -> mr.MaskRCNN:
    return mr.load(folder / "model_final.pth")


@pytest.mark.parametrize("exact", [False, True])
def test_predictions_equal_detectron2s(image, folder, model, exact):
    with recorded_heatmaps() as maps:
        result = mr.predict(model, image, exact=exact)
    expected = np.load(folder / "expected.npz")
    assert result.labels.tolist() == expected["classes"].tolist()
    np.testing.assert_allclose(result.boxes, expected["boxes"], atol=0.01)
    np.testing.assert_allclose(result.scores, expected["scores"], atol=1e-4)
    if "keypoints" in expected:
        theirs = torch.from_numpy(expected["keypoints"])
        scores = result.keypoints[..., 2]
        torch.testing.assert_close(scores, theirs[..., 2], atol=0.05, rtol=1e-7)
        assert_keypoints_close(
            result.keypoints, theirs, result.boxes, maps[0], pixels=0.05, logits=1e-3
        )
    if result.mask_grids is not None:
        masks = json.loads((folder / "masks_rle.json").read_text())
        for ours, theirs in zip(result.masks.rle(), masks, strict=True):
            both_empty = coco_mask.area(ours) == coco_mask.area(theirs) == 0
            assert both_empty or coco_mask.iou([ours], [theirs], [0])[0, 0] > 0.99
        # Exactly at the threshold a pixel may differ.
        np.testing.assert_allclose(result.masks.area(), expected["mask_area"], atol=3, rtol=1e-3)


def test_features_and_proposals_equal_detectron2s(image, folder, model):
    expected = np.load(folder / "expected.npz")
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    batch = mr.Batch.collate([pixels], model.config.input.size_divisor)
    with torch.no_grad():
        levels = model.pyramid(batch).levels
        anchors = model.rpn.anchors(levels, batch)
        proposals = model.rpn.propose(
            *model.rpn(levels), anchors, batch, pre_nms=model.config.rpn.pre_nms_test, post_nms=50
        )
    means = [expected[key] for key in sorted(expected) if key.startswith("feature_mean_")]
    for level, mean in zip(levels, means, strict=True):
        np.testing.assert_allclose(level.mean((0, 2, 3)), mean, atol=1e-4 * np.abs(mean).max())
    np.testing.assert_allclose(proposals.boxes[0], expected["proposals_unresized"], atol=0.02)
    np.testing.assert_allclose(proposals.scores[0], expected["objectness_unresized"], atol=1e-3)


def test_the_zoos_pickle_holds_the_same_model(model_folder):
    pth, pkl = (
        mr.load(model_folder / f"model_final.{suffix}").state_dict() for suffix in ("pth", "pkl")
    )
    assert all(torch.equal(value, pkl[name]) for name, value in pth.items())


def test_an_imported_model_survives_our_own_file(model_folder, image, tmp_path):
    model = mr.load(model_folder / "model_final.pth", categories=["a", "b", "c", "d"])
    mr.save(model, tmp_path / "model.safetensors")
    again = mr.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    one, two = (mr.predict(m, image) for m in (model, again))
    assert torch.equal(one.boxes, two.boxes)
    assert set(one.names) <= {"a", "b", "c", "d"}


def boxes_with(
    model_folder: Path, folder: Path, image: np.ndarray, old: str, new: str
) -> torch.Tensor:
    """The boxes that the joint model predicts with a changed setting, in an input of 120 x 160 px."""
    text = (model_folder / "config.yaml").read_text()
    assert old in text
    text = text.replace(old, new).replace("MIN_SIZE_TEST: 3", "MIN_SIZE_TEST: 1")
    (folder / "config.yaml").write_text(text)
    (folder / "model_final.pth").symlink_to(model_folder / "model_final.pth")
    return mr.predict(mr.load(folder / "model_final.pth"), image).boxes


@pytest.fixture(scope="module")
def boxes_before(model_folder, image, tmp_path_factory) -> torch.Tensor:
    boxes = boxes_with(model_folder, tmp_path_factory.mktemp("before"), image, "VERSION", "VERSION")
    assert len(boxes) > 5
    return boxes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FORMAT: BGR", "FORMAT: RGB"),
        ("STRIDE_IN_1X1: true", "STRIDE_IN_1X1: false"),
        ("  - 1.0\n  - 1.0\n  - 1.0\n  PROPOSAL", "  - 57.0\n  - 57.0\n  - 58.0\n  PROPOSAL"),
        ("OFFSET: 0.0", "OFFSET: 0.5"),
        ("MIN_SIZE_TEST: 320", "MIN_SIZE_TEST: 319"),
        ("FUSE_TYPE: sum", "FUSE_TYPE: avg"),
        ("USE_SIGMOID_CE: false", "USE_SIGMOID_CE: true"),
        ("POOLER_TYPE: ROIAlignV2", "POOLER_TYPE: ROIAlign"),
        ("POOLER_SAMPLING_RATIO: 0", "POOLER_SAMPLING_RATIO: 1"),
        ("NMS_THRESH: 0.7", "NMS_THRESH: 0.3"),
        ("NMS_THRESH_TEST: 0.5", "NMS_THRESH_TEST: 0.1"),
        ("- 10.0\n      - 10.0\n      - 5.0", "- 12.0\n      - 10.0\n      - 5.0"),
    ],
)
def test_settings_that_change_no_shape_change_the_predictions(
    model_folder, image, boxes_before, tmp_path, old, new
):
    boxes = boxes_with(model_folder, tmp_path, image, old, new)
    assert boxes.shape != boxes_before.shape or (boxes - boxes_before).abs().max() > 0.1
