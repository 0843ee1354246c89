"""torchvision's models are recognized from their state dicts. The models are built without memory: only names and shapes matter here."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone

import maskrcnn as mr
from maskrcnn.config import RoIConfig
from maskrcnn.model.shapes_only import NoInitialValues, shapes_only
from maskrcnn.weights import download
from maskrcnn.weights.catalog import find
from maskrcnn.weights.from_torchvision import convert, recognizes
from maskrcnn.weights.pickles import WeightsError

NONE = {"weights": None, "weights_backbone": None}


def state_of(builder, *args, **kwargs) -> dict[str, torch.Tensor]:
    with torch.device("meta"), NoInitialValues():
        return builder(*args, **kwargs).state_dict()


def frozen(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the state dict of a model whose trunk has FrozenBatchNorm2d."""
    return {
        k: v
        for k, v in state.items()
        if not (k.startswith("backbone.body") and k.endswith("num_batches_tracked"))
    }


def shapes(config: mr.ModelConfig) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in shapes_only(config).state_dict().items()}


FAMILIES = {
    "maskrcnn_resnet50_fpn": (
        detection.maskrcnn_resnet50_fpn,
        mr.maskrcnn_r50_fpn_torchvision(90),
        {},
    ),
    "maskrcnn_resnet50_fpn_v2": (
        detection.maskrcnn_resnet50_fpn_v2,
        mr.maskrcnn_r50_fpn_v2_torchvision(90),
        {},
    ),
    "keypointrcnn_resnet50_fpn": (
        detection.keypointrcnn_resnet50_fpn,
        mr.maskrcnn_r50_fpn_torchvision(1, 17),
        {"mask": None},
    ),
    "fasterrcnn_resnet50_fpn": (
        detection.fasterrcnn_resnet50_fpn,
        mr.maskrcnn_r50_fpn_torchvision(90),
        {"mask": None},
    ),
    "fasterrcnn_resnet50_fpn_v2": (
        detection.fasterrcnn_resnet50_fpn_v2,
        mr.maskrcnn_r50_fpn_v2_torchvision(90),
        {"mask": None},
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_recognized_as_its_preset_and_every_weight_is_used(name):
    builder, preset, changes = FAMILIES[name]
    state = state_of(builder, **NONE)
    assert recognizes(state)
    config, ours = convert(state)
    expected_config = replace(preset, **changes, categories=config.categories)
    assert config == replace(expected_config, trunk=replace(expected_config.trunk, norm="batch"))
    assert {k: v.shape for k, v in ours.items()} == shapes(config)


def test_settings_are_torchvisions_defaults():
    with torch.device("meta"):
        model = detection.keypointrcnn_resnet50_fpn(**NONE)
    config, _ = convert(model.state_dict())
    rpn, heads, transform = model.rpn, model.roi_heads, model.transform
    c = config.rpn
    assert (c.pre_nms_train, c.pre_nms_test) == (
        rpn._pre_nms_top_n["training"],
        rpn._pre_nms_top_n["testing"],
    )
    assert (c.post_nms_train, c.post_nms_test) == (
        rpn._post_nms_top_n["training"],
        rpn._post_nms_top_n["testing"],
    )
    assert (c.nms_iou, c.min_size, c.sizes, (c.ratios,) * 5) == (
        rpn.nms_thresh,
        rpn.min_size,
        rpn.anchor_generator.sizes,
        rpn.anchor_generator.aspect_ratios,
    )
    assert (c.positive_iou, c.negative_iou) == (
        rpn.proposal_matcher.high_threshold,
        rpn.proposal_matcher.low_threshold,
    )
    assert (c.samples, c.positive_fraction) == (
        rpn.fg_bg_sampler.batch_size_per_image,
        rpn.fg_bg_sampler.positive_fraction,
    )
    b = config.box
    assert (b.score_threshold, b.nms_iou, b.max_detections) == (
        heads.score_thresh,
        heads.nms_thresh,
        heads.detections_per_img,
    )
    assert (b.samples, b.positive_fraction) == (
        heads.fg_bg_sampler.batch_size_per_image,
        heads.fg_bg_sampler.positive_fraction,
    )
    assert b.box_weights == heads.box_coder.weights
    assert (
        b.positive_iou
        == heads.proposal_matcher.high_threshold
        == heads.proposal_matcher.low_threshold
    )
    for roi, pool in ((b.roi, heads.box_roi_pool), (config.keypoint.roi, heads.keypoint_roi_pool)):
        assert roi == RoIConfig(
            pool.output_size[0], pool.sampling_ratio, aligned=False, level_epsilon="log"
        )
    i = config.input
    assert (i.min_size, i.max_size, i.size_divisor) == (
        transform.min_size[-1],
        transform.max_size,
        transform.size_divisible,
    )
    assert [v / 255 for v in i.mean] == pytest.approx(transform.image_mean)
    assert [v / 255 for v in i.std] == pytest.approx(transform.image_std)


def test_labels_are_coco_ids_and_persons_have_keypoints():
    config, _ = convert(state_of(detection.maskrcnn_resnet50_fpn, **NONE))
    assert [c.id for c in config.categories] == list(range(1, 91))
    assert (config.categories[0].name, config.categories[11].name, config.categories[89].name) == (
        "person",
        "N/A",
        "toothbrush",
    )
    config, _ = convert(state_of(detection.keypointrcnn_resnet50_fpn, **NONE))
    assert [(c.name, len(c.keypoints), c.mirrored[1]) for c in config.categories] == [
        ("person", 17, 2)
    ]
    config, _ = convert(
        state_of(detection.keypointrcnn_resnet50_fpn, **NONE, num_classes=4, num_keypoints=5)
    )
    assert [(c.name, len(c.keypoints)) for c in config.categories] == [("1", 5), ("2", 5), ("3", 5)]
    assert config.num_keypoint_channels == 5


def test_background_moves_from_first_to_last_and_loses_its_boxes_and_masks():
    state = {
        k: torch.zeros(v.shape) if v.numel() > 1e6 else torch.rand(v.shape)
        for k, v in state_of(detection.maskrcnn_resnet50_fpn, **NONE, num_classes=3).items()
    }
    _, ours = convert(state)
    theirs = "roi_heads.box_predictor."
    assert torch.equal(
        ours["box_head.class_logits.bias"], state[theirs + "cls_score.bias"][[1, 2, 0]]
    )
    assert torch.equal(
        ours["box_head.class_logits.weight"], state[theirs + "cls_score.weight"][[1, 2, 0]]
    )
    assert torch.equal(ours["box_head.box_deltas.bias"], state[theirs + "bbox_pred.bias"][4:])
    assert torch.equal(
        ours["mask_head.logits.weight"],
        state["roi_heads.mask_predictor.mask_fcn_logits.weight"][1:],
    )


def test_names_of_older_torchvision_versions_are_read():
    state = state_of(detection.maskrcnn_resnet50_fpn, **NONE)
    old = {
        re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", k).replace(
            "rpn.head.conv.0.0.", "rpn.head.conv."
        ): v
        for k, v in state.items()
    }
    old = {
        re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", k): v
        for k, v in old.items()
    }
    assert "roi_heads.mask_head.mask_fcn4.bias" in old
    assert "backbone.fpn.inner_blocks.0.weight" in old
    assert "rpn.head.conv.bias" in old
    config, ours = convert(old)
    expected_config, new = convert(state)
    assert config == expected_config
    assert set(ours) == set(new)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"depth": 18, "res2_channels": 64}),
        ("resnet34", {"depth": 34, "res2_channels": 64}),
        ("resnet101", {"depth": 101}),
        ("resnext50_32x4d", {"groups": 32, "width_per_group": 4}),
        ("resnext101_32x8d", {"depth": 101, "groups": 32, "width_per_group": 8}),
        ("wide_resnet50_2", {"width_per_group": 128}),
    ],
)
def test_variants_with_other_trunks_are_recognized_by_their_shapes(name, expected):
    def build():
        return TheirMaskRCNN(
            resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d),
            num_classes=5,
        )

    config, ours = convert(state_of(build))
    assert config.trunk == replace(
        mr.maskrcnn_r50_fpn_torchvision(4).trunk, norm="batch", **expected
    )
    assert {k: v.shape for k, v in ours.items()} == shapes(config)


def test_frozen_batch_norm_of_an_unknown_file_is_a_warning_that_offers_bn_eps():
    state = frozen(state_of(detection.maskrcnn_resnet50_fpn, **NONE))
    with pytest.warns(
        UserWarning, match=r"frozen BatchNorm.*Using 1e-5.*load\(\.\.\., bn_eps=0\.0\)"
    ):
        config, _ = convert(state)
    assert (config.trunk.norm, config.trunk.norm_eps) == ("frozen", 1e-5)
    assert (
        convert(state, bn_eps=0.0)[0].trunk.norm_eps == 0.0
    )  # and no warning: warnings are errors here
    for name, eps in (
        ("maskrcnn_r50_fpn_coco", 0.0),
        ("keypointrcnn_r50_fpn_coco_legacy", 1e-5),
        ("keypointrcnn_r50_fpn_coco", 0.0),
    ):
        assert convert(state, published=find(name))[0].trunk.norm_eps == eps


def test_published_file_is_recognized_by_its_hash_and_gets_its_eps(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = detection.FasterRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None), num_classes=2
    )
    path = tmp_path / "renamed.pth"
    torch.save(model.state_dict(), path)
    monkeypatch.setattr(download, "sha256", lambda path: "258fb6c6" + "0" * 56)
    assert mr.load(path).trunk.bn1.eps == 0.0
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="frozen BatchNorm"):
        assert mr.load(path).trunk.bn1.eps == 1e-5


def custom_anchors():
    anchors = AnchorGenerator(((32, 48),) * 5, ((0.5, 1.0),) * 5)
    return detection.FasterRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None), 2, rpn_anchor_generator=anchors
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (custom_anchors, "expected 4 pyramid levels and 3 anchors per cell.*got 4 and 4"),
        (lambda: detection.retinanet_resnet50_fpn(**NONE), "RetinaNet"),
        (
            lambda: detection.FasterRCNN(
                mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True), 2
            ),
            "not a ResNet",
        ),
    ],
)
def test_unsupported_variants_are_refused_by_name(build, message):
    state = state_of(build)
    assert recognizes(state)
    with pytest.raises(WeightsError, match=message):
        convert(state)
