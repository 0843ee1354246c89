"""Every kind of model becomes a file that predicts the same: three small networks cover what presets, torchvision and Detectron2 differ in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from exported_model import shapes_unchecked

import maskrcnn as mr
from maskrcnn.config import ModelConfig, TrunkConfig
from maskrcnn.ops.boxes import iou

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def small(config: ModelConfig, **input: Any) -> ModelConfig:
    """The layout of a preset, with few channels and two thin stages."""
    return replace(
        config,
        input=replace(config.input, **input),
        trunk=replace(config.trunk, depth=18, stem_channels=8, res2_channels=8),
        neck=replace(config.neck, channels=8),
        rpn=replace(config.rpn, convs=(8,), pre_nms_test=200, post_nms_test=300),
        box=replace(config.box, convs=(), fcs=(16,), score_threshold=0.01),
        mask=config.mask and replace(config.mask, convs=(8,), upsample=(8,)),
        keypoint=config.keypoint and replace(config.keypoint, convs=(8,)),
    )


def torchvision() -> ModelConfig:
    """torchvision's layout with masks and keypoints at once, and 300 objects."""
    person = mr.Category("person", 1, keypoints=("a", "b", "c"))
    config = mr.maskrcnn_r50_fpn_torchvision([person, mr.Category("ball", 9, keypoints=("a",))])
    config = small(config, min_size=100, max_size=120)
    return replace(config, box=replace(config.box, max_detections=300, nms_iou=0.9))


def detectron2() -> ModelConfig:
    """Detectron2's C4 layout, without FPN and with res5 as the head, BGR; masks for all categories at once, from enlarged boxes."""
    config = small(mr.maskrcnn_r50_c4(["a", "b"]), min_size=64, max_size=90, channel_order="bgr")
    return replace(
        config,
        box=replace(config.box, fcs=(), nms="all", sigmoid=True),
        mask=config.mask and replace(config.mask, convs=(), class_agnostic=True, context=1.3),
    )


def timm() -> ModelConfig:
    """A timm trunk, boxes alone, Soft-NMS, one box for all categories."""
    config = small(mr.maskrcnn_r18_small(["a", "b", "c"]), min_size=None, scale=0.7)
    return replace(
        config,
        trunk=TrunkConfig(timm="mobilenetv3_small_050", norm="batch", frozen_stages=0),
        box=replace(config.box, nms="soft", class_agnostic=True, max_detections=40),
        mask=None,
    )


def lively(config: ModelConfig) -> mr.MaskRCNN:
    """A network with random weights whose scores differ, as a trained one's do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mr.MaskRCNN.from_config(config).eval()
    with torch.no_grad():
        model.rpn.objectness.weight.mul_(20)
        for name, weight in model.box_head.named_parameters():
            if weight.dim() == 2 and len(weight) < 16 and "delta" not in name:
                weight.mul_(10)
    return model


@pytest.mark.parametrize(
    ("config", "input", "objects"),
    [(torchvision(), "uint8", 300), (detectron2(), "prepared", 10), (timm(), "uint8", 40)],
    ids=["torchvision", "detectron2", "timm"],
)
def test_a_file_of_every_kind_of_model_predicts_the_same(
    config: ModelConfig, input: Literal["uint8", "prepared"], objects: int, tmp_path: Path
) -> None:
    model = lively(config)
    with shapes_unchecked():
        path = mr.export_model(model, tmp_path / "model.onnx", input=input)

    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (70, 90, 3), dtype=np.uint8) for _ in range(2)]
    images += [np.zeros_like(images[0]), images[0][:32, :32], images[1][:20, :60]]
    eager = mr.Predictor(model, exact=True)
    file = mr.Predictor(path)
    counts = []
    for one, two in zip(eager.stream(images), file.stream(images, 3), strict=True):
        assert one.size == two.size
        counts.append(len(one))
        assert len(two) == len(one)

        # Nearly equal scores may change places.
        agree = (one.labels[:, None] == two.labels).float() * iou(one.boxes, two.boxes)
        best, index = (agree - (one.scores[:, None] - two.scores).abs()).max(dim=1)
        two = two[index]
        assert (best > 0.99).float().mean() >= 0.98
        same = best > 0.99
        assert (one.boxes - two.boxes)[same].abs().max() < 0.02
        if one.mask_grids is not None:
            assert (one.mask_grids - two.mask_grids)[same].abs().max() < 5e-3  # ty: ignore[unsupported-operator]
        if one.keypoints is not None:
            # Random maps have nearly equal peaks.
            away = (one.keypoints - two.keypoints)[same].abs().amax(dim=(1, 2))  # ty: ignore[unsupported-operator]
            assert (away < 0.1).float().mean() > 0.97
    assert max(counts) >= objects
