"""Conversion of Detectron2's configurations: every setting that changes predictions is carried over, every unsupported part is refused by its name.

`their_state` writes down, from Detectron2's construction rules and independently of our network, the names and shapes of a checkpoint.
"""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import maskrcnn as mr
from maskrcnn.config import RoIConfig
from maskrcnn.presets import make_categories
from maskrcnn.weights.detectron2_yaml import DEFAULTS, read_config
from maskrcnn.weights.from_detectron2 import model_config
from maskrcnn.weights.pickles import WeightsError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

FPN = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res2", "res3", "res4", "res5"], STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 8}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"], OUT_CHANNELS: 32}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}
  RPN: {IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"], PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TRAIN: 1000, POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"], NUM_CLASSES: 3}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7, FC_DIM: 48, CONV_DIM: 32}
  ROI_MASK_HEAD: {NAME: "MaskRCNNConvUpsampleHead", NUM_CONV: 4, POOLER_RESOLUTION: 14, CONV_DIM: 32}
  ROI_KEYPOINT_HEAD: {CONV_DIMS: [16, 24]}
  MASK_ON: True
VERSION: 2
"""
C4 = """
MODEL:
  RPN: {PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NAME: "Res5ROIHeads", NUM_CLASSES: 3}
  RESNETS: {STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 8}
  ROI_MASK_HEAD: {CONV_DIM: 32}
  MASK_ON: True
"""
DC5 = """
MODEL:
  RESNETS: {OUT_FEATURES: ["res5"], RES5_DILATION: 2, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 8}
  RPN: {IN_FEATURES: ["res5"], PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["res5"], NUM_CLASSES: 3}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7, FC_DIM: 48}
  ROI_MASK_HEAD: {NAME: "MaskRCNNConvUpsampleHead", NUM_CONV: 4, POOLER_RESOLUTION: 14, CONV_DIM: 32}
  MASK_ON: True
"""


@functools.cache
def parsed(text: str) -> dict[str, Any]:
    return yaml.load(text, LOADER)


def settings_of(base: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The base with dotted names set."""
    settings = copy.deepcopy(parsed(base))
    for name, value in changes.items():
        part = settings
        *sections, key = name.split(".")
        for section in sections:
            part = part.setdefault(section, {})
        part[key] = value
    return settings


def written(folder: Path, base: str = FPN, /, **changes: Any) -> Path:
    path = folder / "config.yaml"
    settings = settings_of(base, {k.replace("__", "."): v for k, v in changes.items()})
    path.write_text(json.dumps(settings))  # which is YAML, and is written faster
    return path


def config_of(folder: Path, base: str = FPN, /, **changes: Any) -> mr.ModelConfig:
    path = written(folder, base, **changes)
    return model_config(read_config(path), path)


BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def their_state(settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Names and shapes of the checkpoint that Detectron2 writes for these (complete) settings."""
    m, state = settings["MODEL"], {}
    r, c4 = m["RESNETS"], m["ROI_HEADS"]["NAME"] == "Res5ROIHeads"
    fpn = "fpn" in m["BACKBONE"]["NAME"]

    def conv(name, out, into, kernel, norm="", bias=None, groups=1):
        state[f"{name}.weight"] = torch.rand(out, into // groups, kernel, kernel)
        if bias if bias is not None else norm == "":
            state[f"{name}.bias"] = torch.rand(out)
        if norm:
            for part in (
                "weight",
                "bias",
                *(() if norm == "GN" else ("running_mean", "running_var")),
            ):
                state[f"{name}.norm.{part}"] = torch.rand(out)
            if norm in ("BN", "SyncBN"):
                state[f"{name}.norm.num_batches_tracked"] = torch.tensor(7)

    def linear(name, out, into):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(out, into), torch.rand(out)

    def stage(prefix, number, blocks, norm, basic):
        out = r["RES2_OUT_CHANNELS"] * 2 ** (number - 2)
        inner = r["NUM_GROUPS"] * r["WIDTH_PER_GROUP"] * 2 ** (number - 2)
        into = r["STEM_OUT_CHANNELS"] if number == 2 else out // 2
        for b in range(blocks):
            name = f"{prefix}.{b}"
            if into != out:
                conv(f"{name}.shortcut", out, into, 1, norm, bias=False)
            if basic:
                conv(f"{name}.conv1", out, into, 3, norm, bias=False)
                conv(f"{name}.conv2", out, out, 3, norm, bias=False)
            else:
                conv(f"{name}.conv1", inner, into, 1, norm, bias=False)
                conv(f"{name}.conv2", inner, inner, 3, norm, bias=False, groups=r["NUM_GROUPS"])
                conv(f"{name}.conv3", out, inner, 1, norm, bias=False)
            into = out

    body, basic = "backbone.bottom_up" if fpn else "backbone", r["DEPTH"] < 50
    frozen = m["BACKBONE"]["FREEZE_AT"]
    norms = [
        ("FrozenBN" if frozen >= i and "BN" in r["NORM"] else r["NORM"]) for i in range(1, 6)
    ]  # freezing turns BatchNorm into FrozenBatchNorm
    conv(f"{body}.stem.conv1", r["STEM_OUT_CHANNELS"], 3, 7, norms[0], bias=False)
    for number in range(2, 5 if c4 else 6):
        stage(
            f"{body}.res{number}", number, BLOCKS[r["DEPTH"]][number - 2], norms[number - 1], basic
        )
    channels = r["RES2_OUT_CHANNELS"] * (4 if c4 else 8)
    if fpn:
        channels = m["FPN"]["OUT_CHANNELS"]
        for feature in m["FPN"]["IN_FEATURES"]:
            level = int(feature[3:])
            conv(
                f"backbone.fpn_lateral{level}",
                channels,
                r["RES2_OUT_CHANNELS"] * 2 ** (level - 2),
                1,
                m["FPN"]["NORM"],
            )
            conv(f"backbone.fpn_output{level}", channels, channels, 3, m["FPN"]["NORM"])

    rpn, width, head = m["RPN"], channels, "proposal_generator.rpn_head"
    for k, dim in enumerate(rpn["CONV_DIMS"]):
        out = width if dim == -1 else dim
        conv(
            f"{head}.conv" if len(rpn["CONV_DIMS"]) == 1 else f"{head}.conv.conv{k}", out, width, 3
        )
        width = out
    a = m["ANCHOR_GENERATOR"]
    anchors = len(a["SIZES"][0]) * len(a["ASPECT_RATIOS"][0])
    conv(f"{head}.objectness_logits", anchors, width, 1)
    conv(f"{head}.anchor_deltas", anchors * 4, width, 1)

    classes, box, mask = m["ROI_HEADS"]["NUM_CLASSES"], m["ROI_BOX_HEAD"], m["ROI_MASK_HEAD"]
    if c4:
        stage("roi_heads.res5", 5, 3, r["NORM"], basic=False)
        channels = flat = r["RES2_OUT_CHANNELS"] * 8
    else:
        width = channels
        for k in range(box["NUM_CONV"]):
            conv(f"roi_heads.box_head.conv{k + 1}", box["CONV_DIM"], width, 3, box["NORM"])
            width = box["CONV_DIM"]
        flat = width * box["POOLER_RESOLUTION"] ** 2
        for k in range(box["NUM_FC"]):
            linear(f"roi_heads.box_head.fc{k + 1}", box["FC_DIM"], flat)
            flat = box["FC_DIM"]
    linear("roi_heads.box_predictor.cls_score", classes + 1, flat)
    linear(
        "roi_heads.box_predictor.bbox_pred",
        4 * (1 if box["CLS_AGNOSTIC_BBOX_REG"] else classes),
        flat,
    )
    if m["MASK_ON"]:
        width = channels
        for k in range(mask["NUM_CONV"]):
            conv(f"roi_heads.mask_head.mask_fcn{k + 1}", mask["CONV_DIM"], width, 3, mask["NORM"])
            width = mask["CONV_DIM"]
        state["roi_heads.mask_head.deconv.weight"] = torch.rand(width, mask["CONV_DIM"], 2, 2)
        state["roi_heads.mask_head.deconv.bias"] = torch.rand(mask["CONV_DIM"])
        conv(
            "roi_heads.mask_head.predictor",
            1 if mask["CLS_AGNOSTIC_MASK"] else classes,
            mask["CONV_DIM"],
            1,
        )
    if m["KEYPOINT_ON"]:
        width, points = channels, m["ROI_KEYPOINT_HEAD"]
        for k, dim in enumerate(points["CONV_DIMS"]):
            conv(f"roi_heads.keypoint_head.conv_fcn{k + 1}", dim, width, 3)
            width = dim
        state["roi_heads.keypoint_head.score_lowres.weight"] = torch.rand(
            width, points["NUM_KEYPOINTS"], 4, 4
        )
        state["roi_heads.keypoint_head.score_lowres.bias"] = torch.rand(points["NUM_KEYPOINTS"])
    return state


RESNETS = "MODEL__RESNETS__"
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "r18": (
        FPN,
        {
            RESNETS + "DEPTH": 18,
            RESNETS + "RES2_OUT_CHANNELS": 16,
            RESNETS + "STEM_OUT_CHANNELS": 16,
        },
    ),
    "r34": (
        FPN,
        {
            RESNETS + "DEPTH": 34,
            RESNETS + "RES2_OUT_CHANNELS": 16,
            RESNETS + "STEM_OUT_CHANNELS": 16,
        },
    ),
    "r101": (FPN, {RESNETS + "DEPTH": 101}),
    "x152": (
        FPN,
        {
            RESNETS + "DEPTH": 152,
            RESNETS + "NUM_GROUPS": 8,
            RESNETS + "WIDTH_PER_GROUP": 2,
            RESNETS + "STRIDE_IN_1X1": False,
        },
    ),
    "r101_c4": (C4, {RESNETS + "DEPTH": 101}),
    "c4_boxes": (C4, {"MODEL__MASK_ON": False}),
    "c4_convs": (C4, {"MODEL__ROI_MASK_HEAD__NUM_CONV": 2, "MODEL__RPN__CONV_DIMS": [24]}),
    "dc5": (DC5, {}),
    "dc5_joint": (DC5, {"MODEL__KEYPOINT_ON": True}),
    "batch_norm": (
        FPN,
        {RESNETS + "NORM": "BN", "MODEL__BACKBONE__FREEZE_AT": 0, "MODEL__FPN__NORM": "BN"},
    ),
    "sync_bn": (
        FPN,
        {
            RESNETS + "NORM": "SyncBN",
            "MODEL__FPN__NORM": "SyncBN",
            "MODEL__ROI_MASK_HEAD__NORM": "SyncBN",
        },
    ),
    "sync_bn_c4": (C4, {RESNETS + "NORM": "SyncBN"}),
    "group_norm": (
        FPN,
        {
            RESNETS + "NORM": "GN",
            RESNETS + "STEM_OUT_CHANNELS": 32,
            RESNETS + "WIDTH_PER_GROUP": 32,
            "MODEL__FPN__NORM": "GN",
        }
        | {
            "MODEL__ROI_BOX_HEAD__NORM": "GN",
            "MODEL__ROI_BOX_HEAD__NUM_CONV": 4,
            "MODEL__ROI_BOX_HEAD__NUM_FC": 1,
            "MODEL__ROI_MASK_HEAD__NORM": "GN",
        },
    ),
    "convs_without_fc": (
        FPN,
        {"MODEL__ROI_BOX_HEAD__NUM_CONV": 2, "MODEL__ROI_BOX_HEAD__NUM_FC": 0},
    ),
    "rpn_convs": (FPN, {"MODEL__RPN__CONV_DIMS": [-1, 24, -1]}),
    "agnostic": (
        FPN,
        {
            "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True,
            "MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK": True,
        },
    ),
    "keypoint": (FPN, {"MODEL__KEYPOINT_ON": True, "MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS": 5}),
    "keypoints": (
        FPN,
        {"MODEL__KEYPOINT_ON": True, "MODEL__MASK_ON": False, "MODEL__ROI_HEADS__NUM_CLASSES": 1},
    ),
    "anchors": (
        FPN,
        {
            "MODEL__ANCHOR_GENERATOR__SIZES": [
                [16, 24],
                [32, 48],
                [64, 96],
                [128, 192],
                [256, 384],
            ],
            "MODEL__ANCHOR_GENERATOR__OFFSET": 0.5,
        },
    ),
    "p3_to_p6": (
        FPN,
        {
            "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
            "MODEL__ROI_HEADS__IN_FEATURES": ["p3", "p4", "p5"],
        }
        | {
            "MODEL__RPN__IN_FEATURES": ["p3", "p4", "p5", "p6"],
            "MODEL__ANCHOR_GENERATOR__SIZES": [[32, 64]],
        },
    ),
    "lvis": (
        FPN,
        {
            "MODEL__ROI_HEADS__NUM_CLASSES": 1203,
            "TEST__DETECTIONS_PER_IMAGE": 300,
            "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0001,
        },
    ),
    "no_mask_convs": (FPN, {"MODEL__ROI_MASK_HEAD__NUM_CONV": 0}),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_weight_of_the_zoos_variants_is_used_and_the_model_predicts(tmp_path, name):
    base, changes = ZOO[name]
    path = written(tmp_path, base, **changes)
    state = their_state(read_config(path))
    torch.save({"model": state, "iteration": 3}, tmp_path / "model_final.pth")
    model = mr.load(tmp_path / "model_final.pth")
    ours = model.state_dict()
    assert len([k for k in state if "num_batches" not in k]) == len(
        [k for k in ours if "num_batches" not in k]
    )
    assert sum(v.sum() for k, v in state.items() if "num_batches" not in k) == pytest.approx(
        sum(v.sum() for k, v in ours.items() if "num_batches" not in k).item(), rel=1e-5
    )
    model.config = replace(
        model.config, input=replace(model.config.input, min_size=64, max_size=96)
    )
    result = mr.predict(model, torch.zeros(40, 60, 3, dtype=torch.uint8).numpy())
    assert (result.mask_grids is not None, result.keypoints is not None) == (
        model.config.mask is not None,
        model.config.keypoint is not None,
    )


def test_keys_that_are_not_weights_are_ignored_and_unexpected_ones_are_named(tmp_path):
    path = written(tmp_path)
    state = their_state(read_config(path))
    extra = {
        "pixel_mean": torch.zeros(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
    }
    torch.save({"model": state | extra}, tmp_path / "model_final.pth")
    mr.load(tmp_path / "model_final.pth")
    state["roi_heads.mask_head.point_head.fc1.weight"] = torch.zeros(1)
    del state["roi_heads.box_head.fc2.bias"]
    torch.save({"model": state}, tmp_path / "model_final.pth")
    with pytest.raises(
        WeightsError,
        match=r"missing keys: box_head\.fcs\.1\.bias; unexpected keys: roi_heads\.mask_head\.point_head\.fc1\.weight\.",
    ):
        mr.load(tmp_path / "model_final.pth")


def test_missing_keys_are_detectron2s_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {MASK_ON: true}\n")
    config = model_config(read_config(path), path)
    preset = mr.maskrcnn_r50_c4(80)
    rpn = replace(preset.rpn, convs=(1024,))
    mask = replace(preset.mask, paste="grid")
    bgr = replace(
        preset.input, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), channel_order="bgr"
    )
    assert config == replace(preset, categories=make_categories(80), input=bgr, rpn=rpn, mask=mask)


@pytest.mark.parametrize(
    ("name", "value", "ours", "expected"),
    [
        ("INPUT__FORMAT", "RGB", "input.channel_order", "rgb"),
        ("INPUT__MIN_SIZE_TEST", 640, "input.min_size", 640),
        ("INPUT__MIN_SIZE_TEST", 0, "input.min_size", None),
        ("INPUT__MIN_SIZE_TEST", 0, "input.max_size", None),
        ("INPUT__MAX_SIZE_TEST", 2000, "input.max_size", 2000),
        ("MODEL__PIXEL_MEAN", [1, 2, 3], "input.mean", (1.0, 2.0, 3.0)),
        ("MODEL__PIXEL_STD", [57.375, 57.12, 58.395], "input.std", (57.375, 57.12, 58.395)),
        ("MODEL__RESNETS__STRIDE_IN_1X1", False, "trunk.stride_in_1x1", False),
        ("MODEL__RESNETS__NORM", "nnSyncBN", "trunk.norm", "batch"),
        ("MODEL__BACKBONE__FREEZE_AT", 0, "trunk.frozen_stages", 0),
        ("MODEL__FPN__FUSE_TYPE", "avg", "neck.fuse", "average"),
        ("MODEL__FPN__NORM", "GN", "neck.norm", "group"),
        ("MODEL__ANCHOR_GENERATOR__OFFSET", 0.5, "rpn.offset", 0.5),
        ("MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS", [[1, 3]], "rpn.ratios", (1.0, 3.0)),
        ("MODEL__ANCHOR_GENERATOR__SIZES", [8, 16], "rpn.sizes", ((8.0, 16.0),) * 5),
        ("MODEL__PROPOSAL_GENERATOR__MIN_SIZE", 4, "rpn.min_size", 4.0),
        ("MODEL__RPN__CONV_DIMS", [-1, 64, -1], "rpn.convs", (32, 64, 64)),
        ("MODEL__RPN__PRE_NMS_TOPK_TEST", 77, "rpn.pre_nms_test", 77),
        ("MODEL__RPN__POST_NMS_TOPK_TEST", 78, "rpn.post_nms_test", 78),
        ("MODEL__RPN__NMS_THRESH", 0.6, "rpn.nms_iou", 0.6),
        ("MODEL__RPN__IOU_THRESHOLDS", [0.2, 0.8], "rpn.positive_iou", 0.8),
        (
            "MODEL__RPN__BBOX_REG_WEIGHTS",
            "(2.0, 2.0, 1.0, 1.0)",
            "rpn.box_weights",
            (2.0, 2.0, 1.0, 1.0),
        ),
        ("MODEL__RPN__SMOOTH_L1_BETA", "1e-1", "rpn.smooth_l1_beta", 0.1),
        ("MODEL__ROI_HEADS__SCORE_THRESH_TEST", "1e-4", "box.score_threshold", 1e-4),
        ("MODEL__ROI_HEADS__NMS_THRESH_TEST", 0.3, "box.nms_iou", 0.3),
        ("TEST__DETECTIONS_PER_IMAGE", 300, "box.max_detections", 300),
        ("TEST__DETECTIONS_PER_IMAGE", -1, "box.max_detections", 60),
        ("MODEL__ROI_BOX_HEAD__POOLER_TYPE", "ROIAlign", "box.roi.aligned", False),
        ("MODEL__ROI_BOX_HEAD__POOLER_SAMPLING_RATIO", 2, "box.roi.sampling_ratio", 2),
        (
            "MODEL__ROI_BOX_HEAD__BBOX_REG_WEIGHTS",
            [1, 1, 1, 1],
            "box.box_weights",
            (1.0, 1.0, 1.0, 1.0),
        ),
        ("MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE", True, "box.sigmoid", True),
        ("MODEL__ROI_BOX_HEAD__SMOOTH_L1_BETA", 0.5, "box.smooth_l1_beta", 0.5),
        (
            "MODEL__ROI_MASK_HEAD__POOLER_TYPE",
            "ROIAlign",
            "mask.roi",
            RoIConfig(14, 0, aligned=False),
        ),
        ("MODEL__ROI_MASK_HEAD__POOLER_RESOLUTION", 28, "mask.roi.size", 28),
        ("MODEL__ROI_MASK_HEAD__NUM_CONV", 1, "mask.convs", (32,)),
    ],
)
def test_settings_arrive(tmp_path, name, value, ours, expected):
    part: Any = config_of(tmp_path, **{name: value})
    before: Any = config_of(tmp_path)
    for field in ours.split("."):
        part, before = getattr(part, field), getattr(before, field)
    assert part == expected
    assert before != expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"MODEL__RESNETS__DEFORM_ON_PER_STAGE": [False, True, True, True]},
            "DEFORM_ON_PER_STAGE, deformable convolution, is not supported",
        ),
        (
            {"MODEL__ROI_HEADS__NAME": "CascadeROIHeads"},
            "ROI_HEADS.NAME: 'CascadeROIHeads' .a cascade",
        ),
        (
            {"MODEL__PROPOSAL_GENERATOR__NAME": "RRPN"},
            "PROPOSAL_GENERATOR.NAME: 'RRPN' .rotated boxes",
        ),
        (
            {"MODEL__ANCHOR_GENERATOR__NAME": "RotatedAnchorGenerator"},
            "RotatedAnchorGenerator' .rotated boxes",
        ),
        ({"MODEL__ROI_HEADS__NAME": "RROIHeads"}, "RROIHeads' .rotated boxes"),
        (
            {"MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIAlignRotated"},
            "POOLER_TYPE: 'ROIAlignRotated' .rotated boxes",
        ),
        ({"MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIPool"}, "POOLER_TYPE: 'ROIPool'"),
        (
            {"MODEL__ROI_BOX_HEAD__BBOX_REG_WEIGHTS": [10, 10, 5, 5, 1]},
            "BBOX_REG_WEIGHTS: expected 4 values, got 5, perhaps for rotated",
        ),
        (
            {"MODEL__ROI_MASK_HEAD__NAME": "PointRendMaskHead"},
            "ROI_MASK_HEAD.NAME: 'PointRendMaskHead' .PointRend",
        ),
        ({"MODEL__META_ARCHITECTURE": "RetinaNet"}, "META_ARCHITECTURE: 'RetinaNet'"),
        ({"MODEL__META_ARCHITECTURE": "PanopticFPN"}, "PanopticFPN' .panoptic"),
        ({"MODEL__META_ARCHITECTURE": "ProposalNetwork"}, "ProposalNetwork' .proposals without"),
        (
            {"MODEL__LOAD_PROPOSALS": True},
            "LOAD_PROPOSALS, precomputed proposals, is not supported",
        ),
        (
            {"MODEL__BACKBONE__NAME": "build_swin_backbone"},
            "BACKBONE.NAME: 'build_swin_backbone' is not supported; supported values: 'build_resnet_fpn_backbone'",
        ),
        ({"MODEL__RPN__HEAD_NAME": "MyHead"}, "RPN.HEAD_NAME: 'MyHead'"),
        ({"MODEL__ROI_BOX_HEAD__NAME": "MyHead"}, "ROI_BOX_HEAD.NAME: 'MyHead'"),
        (
            {"MODEL__KEYPOINT_ON": True, "MODEL__ROI_KEYPOINT_HEAD__NAME": "MyHead"},
            "ROI_KEYPOINT_HEAD.NAME: 'MyHead'",
        ),
        ({"MODEL__RESNETS__NORM": "LN"}, "RESNETS.NORM: 'LN'"),
        ({"MODEL__RESNETS__DEPTH": 200}, "RESNETS.DEPTH: 200"),
        ({"INPUT__FORMAT": "YUV-BT.601"}, "INPUT.FORMAT: 'YUV-BT.601'"),
        (
            {"MODEL__PIXEL_MEAN": [0, 0, 0, 0], "MODEL__PIXEL_STD": [1, 1, 1, 1]},
            "PIXEL_MEAN: expected 3 channels, got 4",
        ),
        ({"MODEL__RPN__IN_FEATURES": ["p2", "p3"]}, "RPN.IN_FEATURES .'p2', 'p3'."),
        (
            {"MODEL__FPN__IN_FEATURES": ["res2", "res3"]},
            "Supported are pyramids that end in res5",
        ),
        (
            {"MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS": [[1.0], [2.0], [1.0], [1.0], [1.0]]},
            "ASPECT_RATIOS that differ between levels",
        ),
        (
            {"MODEL__ANCHOR_GENERATOR__SIZES": [[1], [2]]},
            r"SIZES: expected 1 list, or one for each level \(5\), got 2",
        ),
        (
            {"MODEL__BACKBONE__NAME": "build_resnet_backbone"},
            "StandardROIHeads on .*Supported without FPN are C4",
        ),
        ({"VERSION": 1}, "expected a configuration of version 2, got version 1"),
        (
            {"MODEL__RPN__NMS_THRESH": "high"},
            "RPN.NMS_THRESH: expected a value like 0.7, got 'high'",
        ),
        ({"MODEL__FPN": "none"}, "MODEL.FPN: expected a section, got 'none'"),
    ],
)
def test_unsupported_parts_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message) as error:
        config_of(tmp_path, **changes)
    assert str(tmp_path / "config.yaml") in str(error.value)


def test_parts_that_are_switched_off_are_not_refused(tmp_path):
    config = config_of(
        tmp_path,
        MODEL__MASK_ON=False,
        MODEL__ROI_MASK_HEAD__NAME="PointRendMaskHead",
        MODEL__SEM_SEG_HEAD__NAME="Anything",
    )
    assert config.mask is None


def test_test_time_augmentation_and_unknown_settings_are_warnings(tmp_path):
    with pytest.warns(UserWarning, match="ignoring TEST.AUG, because test-time augmentation"):
        config_of(tmp_path, TEST__AUG={"ENABLED": True})
    with pytest.warns(
        UserWarning, match=r"settings that Detectron2 does not have: MODEL\.RESNETS\.DEEP_STEM"
    ):
        config_of(tmp_path, MODEL__RESNETS__DEEP_STEM=True)


def test_base_configurations_are_followed(tmp_path):
    (tmp_path / "base.yaml").write_text(FPN)
    (tmp_path / "sub").mkdir()
    middle = tmp_path / "sub" / "middle.yaml"
    middle.write_text(
        "_BASE_: ../base.yaml\nMODEL: {ROI_HEADS: {NUM_CLASSES: 7}, RESNETS: {DEPTH: 101}}\n"
    )
    top = tmp_path / "config.yaml"
    top.write_text("_BASE_: sub/middle.yaml\nMODEL: {RESNETS: {DEPTH: 50}}\n")
    config = model_config(read_config(top), top)
    assert (config.num_classes, config.trunk.depth, config.neck.channels) == (7, 50, 32)
    middle.write_text("_BASE_: ../config.yaml\n")
    with pytest.raises(WeightsError, match="leads back to the file itself"):
        read_config(top)
    middle.unlink()
    with pytest.raises(
        WeightsError,
        match=r"middle\.yaml \(the _BASE_ of .*config\.yaml\): cannot be read.*cfg\.dump",
    ):
        read_config(top)


def test_tuples_of_old_dumps_are_lists_and_code_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL:\n  RPN:\n    BBOX_REG_WEIGHTS: !!python/tuple [2.0, 2.0, 1.0, 1.0]\n")
    assert read_config(path)["MODEL"]["RPN"]["BBOX_REG_WEIGHTS"] == [2.0, 2.0, 1.0, 1.0]
    marker = tmp_path / "ran"
    for tag in (
        f"!!python/object/apply:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "!!python/module:os",
    ):
        path.write_text(f"MODEL:\n  RPN: {tag}\n")
        with pytest.raises(WeightsError, match="cannot be read"):
            read_config(path)
        assert not marker.exists()


@pytest.mark.parametrize(
    "text", ["", "- a\n", "model: {_target_: detectron2.modeling.GeneralizedRCNN}\n", "a: [\n"]
)
def test_errors_name_files_that_are_not_a_configuration(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(WeightsError, match=r"config\.yaml"):
        read_config(path)


def test_categories_are_cocos_where_the_data_set_is(tmp_path):
    coco = {"DATASETS__TRAIN": ["coco_2017_train"], "MODEL__ROI_HEADS__NUM_CLASSES": 80}
    categories = config_of(tmp_path, **coco).categories
    assert [(c.name, c.id) for c in categories[:2]] + [
        (categories[-1].name, categories[-1].id)
    ] == [
        ("person", 1),
        ("bicycle", 2),
        ("toothbrush", 90),
    ]
    assert [
        c.name for c in config_of(tmp_path, **coco | {"DATASETS__TRAIN": ["mine"]}).categories[:2]
    ] == ["1", "2"]
    person = {
        "DATASETS__TRAIN": ["keypoints_coco_2017_train"],
        "MODEL__KEYPOINT_ON": True,
        "MODEL__ROI_HEADS__NUM_CLASSES": 1,
    }
    (one,) = config_of(tmp_path, **person).categories
    assert (one.name, one.keypoints[0], one.mirrored[1]) == ("person", "nose", 2)
    own = {
        "MODEL__KEYPOINT_ON": True,
        "MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS": 2,
        "TEST__KEYPOINT_OKS_SIGMAS": [0.1, 0.2],
    }
    categories = config_of(tmp_path, **own).categories
    assert [(c.keypoints, c.sigmas) for c in categories] == [
        (("keypoint 0", "keypoint 1"), (0.1, 0.2))
    ] * 3


def test_the_golden_files_have_no_unknown_setting_and_every_default_equals_detectron2s(
    shared,
):
    """A full dump differs from the defaults only where the model's author changed something; a wrong default would show in all."""
    dumps = [
        parsed(p.read_text())
        for p in sorted((shared / "golden" / "detectron2").glob("*/config.yaml"))
    ]
    defaults = parsed(DEFAULTS)

    def compare(part, others, where):
        for key, value in part.items():
            if isinstance(value, dict):
                compare(value, [o[key] for o in others], f"{where}{key}.")
            else:
                kinds = {type(o[key]) for o in others}
                assert kinds == {type(value)}, f"{where}{key}"

    compare(defaults, dumps, "")
    for section in (
        "BACKBONE",
        "FPN",
        "ANCHOR_GENERATOR",
        "RPN",
        "ROI_HEADS",
        "ROI_BOX_HEAD",
        "ROI_MASK_HEAD",
        "ROI_KEYPOINT_HEAD",
        "RESNETS",
    ):
        assert set(dumps[0]["MODEL"][section]) == set(defaults["MODEL"][section]), section
