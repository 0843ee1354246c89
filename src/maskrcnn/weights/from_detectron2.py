"""Detectron2's models: checkpoint and `config.yaml` -> our configuration and our state dict.

In: the weights of a `GeneralizedRCNN` (`model_final.pth` or the zoo's `.pkl`) and the `config.yaml` that Detectron2 writes beside them: INPUT.FORMAT,
PIXEL_STD, STRIDE_IN_1X1 and many more change the answers without changing a shape.

What a configuration asks for and we lack is refused by name, and so is every name that we do not know. What only matters in training and differs
here (losses of another kind, the sampling of regions) does not keep a model from being loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import (
    BoxHeadConfig,
    Category,
    InputConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    NeckConfig,
    Norm,
    RoIConfig,
    RPNConfig,
    TrunkConfig,
)
from ..model.resnet import BLOCKS
from ..presets import make_categories
from .catalog import coco_categories, person
from .detectron2_names import renamed
from .detectron2_yaml import read_config
from .pickles import WeightsError

_NORMS: Mapping[str, Norm] = {
    "": "none",
    "FrozenBN": "frozen",
    "BN": "batch",
    "SyncBN": "batch",
    "nnSyncBN": "batch",
    "naiveSyncBN": "batch",
    "naiveSyncBN_N": "batch",
    "GN": "group",
}
# The parts that we have; anything else under these names is refused.
_PARTS = {
    "META_ARCHITECTURE": ("GeneralizedRCNN",),
    "BACKBONE.NAME": ("build_resnet_fpn_backbone", "build_resnet_backbone"),
    "PROPOSAL_GENERATOR.NAME": ("RPN",),
    "ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "RPN.HEAD_NAME": ("StandardRPNHead",),
    "ROI_HEADS.NAME": ("StandardROIHeads", "Res5ROIHeads"),
}
# What the names of parts that we lack stand for.
_LACKED = {
    "CascadeROIHeads": "a cascade of box heads",
    "RRPN": "rotated boxes",
    "RotatedAnchorGenerator": "rotated boxes",
    "RROIHeads": "rotated boxes",
    "ROIAlignRotated": "rotated boxes",
    "ROIPool": "RoIPool",
    "PointRendROIHeads": "PointRend",
    "PointRendMaskHead": "PointRend",
    "ImplicitPointRendMaskHead": "PointRend",
    "CoarseMaskHead": "PointRend",
    "DensePoseROIHeads": "DensePose",
    "RetinaNet": "a one-stage detector",
    "TensorMask": "a one-stage detector",
    "FCOS": "a one-stage detector",
    "PanopticFPN": "panoptic segmentation",
    "SemanticSegmentor": "semantic segmentation",
    "ProposalNetwork": "proposals without RoI heads",
    "PrecomputedProposals": "precomputed proposals",
    "build_retinanet_resnet_fpn_backbone": "a pyramid with P7",
}


def convert(state: Mapping[str, Tensor], path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the weights under our names.

    Args:
        state: the weights under Detectron2's names.
        path: the file they are from; its `config.yaml` stands beside it.

    Raises:
        WeightsError: no configuration, or one that asks for parts that we lack.
    """
    beside = [path.with_name("config.yaml"), path.with_suffix(".yaml")]
    found = next((p for p in beside if p.is_file()), None)
    if found is None:
        raise WeightsError(
            f"a model of Detectron2 needs its configuration beside it as {beside[0]}: the color order, the scale of pixels and more are not in the "
            "weights. Detectron2 writes it into OUTPUT_DIR; for a model of the zoo, write model_zoo.get_config(..).dump() into that file."
        )
    config = model_config(read_config(found), found)
    return config, renamed(state, config.neck.levels[0])


def model_config(settings: Mapping[str, Any], path: Path) -> ModelConfig:
    """Our configuration of the network that Detectron2 builds from these settings, complete with defaults.

    Raises:
        WeightsError: the settings ask for a part that we lack.
    """
    _refuse_others(settings, path)
    m = settings["MODEL"]
    neck = _neck(m, path)
    mask = _mask(m, neck, path) if m["MASK_ON"] else None
    keypoint = _keypoint(m, path) if m["KEYPOINT_ON"] else None
    if keypoint and neck.kind == "c4":
        raise WeightsError(
            f"{path}: KEYPOINT_ON with Res5ROIHeads, which Detectron2 itself does not allow."
        )
    return ModelConfig(
        categories=_categories(settings, keypoint is not None),
        input=_input(settings, neck, path),
        trunk=_trunk(m, neck, path),
        neck=neck,
        rpn=_rpn(m, neck, path),
        box=_box(m, neck, settings["TEST"]["DETECTIONS_PER_IMAGE"], path),
        mask=mask,
        keypoint=keypoint,
    )


def _refuse_others(settings: Mapping[str, Any], path: Path) -> None:
    """Every part that we lack, by its name."""
    if settings["VERSION"] != 2:
        raise WeightsError(
            f"{path}: a configuration of version {settings['VERSION']}, only version 2 is understood; load and dump it with Detectron2."
        )
    m, parts = settings["MODEL"], dict(_PARTS)
    if m["ROI_HEADS"]["NAME"] == "StandardROIHeads":
        parts["ROI_BOX_HEAD.NAME"] = ("FastRCNNConvFCHead",)
    if m["MASK_ON"]:
        parts["ROI_MASK_HEAD.NAME"] = ("MaskRCNNConvUpsampleHead",)
    if m["KEYPOINT_ON"]:
        parts["ROI_KEYPOINT_HEAD.NAME"] = ("KRCNNConvDeconvUpsampleHead",)
    for name, ours in parts.items():
        value: Any = m
        for key in name.split("."):
            value = value[key]
        _choose(value, {n: n for n in ours}, f"MODEL.{name}", path)
    if m["LOAD_PROPOSALS"]:
        raise WeightsError(
            f"{path}: MODEL.LOAD_PROPOSALS asks for precomputed proposals; models with their own RPN can be loaded."
        )
    if any(m["RESNETS"]["DEFORM_ON_PER_STAGE"]):
        raise WeightsError(
            f"{path}: MODEL.RESNETS.DEFORM_ON_PER_STAGE asks for deformable convolution, which we lack."
        )
    if settings["TEST"]["AUG"]["ENABLED"]:
        warnings.warn(
            f'{path}: TEST.AUG asks for test-time augmentation, which is no part of a model here; it is asked for with tta=, for example tta="flip".',
            stacklevel=5,
        )


def _input(settings: Mapping[str, Any], neck: NeckConfig, path: Path) -> InputConfig:
    m, given = settings["MODEL"], settings["INPUT"]
    mean, std = m["PIXEL_MEAN"], m["PIXEL_STD"]
    if len(mean) != 3 or len(std) != 3:
        raise WeightsError(
            f"{path}: MODEL.PIXEL_MEAN has {len(mean)} channels; models of three can be loaded."
        )
    resized = given["MIN_SIZE_TEST"] > 0
    return InputConfig(
        min_size=given["MIN_SIZE_TEST"] if resized else None,
        max_size=given["MAX_SIZE_TEST"] if resized else None,
        size_divisor=2 ** neck.levels[-1] if neck.kind == "fpn" else 1,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        channel_order=_choose(given["FORMAT"], {"RGB": "rgb", "BGR": "bgr"}, "INPUT.FORMAT", path),
    )


def _neck(m: Mapping[str, Any], path: Path) -> NeckConfig:
    """FPN, C4 or DC5, of which only the forms of the zoo are known: RPN and heads read the levels that the neck makes for them."""
    rpn, heads, fpn = m["RPN"]["IN_FEATURES"], m["ROI_HEADS"]["IN_FEATURES"], m["FPN"]
    res5_head = m["ROI_HEADS"]["NAME"] == "Res5ROIHeads"
    if m["BACKBONE"]["NAME"] == "build_resnet_fpn_backbone":
        levels = tuple(int(name.removeprefix("res")) for name in fpn["IN_FEATURES"])
        wanted = [f"p{level}" for level in levels]
        if (
            res5_head
            or levels[-1:] != (5,)
            or levels != tuple(range(levels[0], 6))
            or heads != wanted
            or rpn != [*wanted, "p6"]
        ):
            raise WeightsError(
                f"{path}: FPN.IN_FEATURES {fpn['IN_FEATURES']}, RPN.IN_FEATURES {rpn}, {m['ROI_HEADS']['NAME']}.IN_FEATURES {heads}: a pyramid can "
                "be loaded where it ends in res5, the RPN reads all its levels and p6, and StandardROIHeads all but p6."
            )
        norm, fuse = (
            _choose(fpn["NORM"], _NORMS, "MODEL.FPN.NORM", path),
            _choose(
                fpn["FUSE_TYPE"], {"sum": "sum", "avg": "average"}, "MODEL.FPN.FUSE_TYPE", path
            ),
        )
        return NeckConfig(channels=fpn["OUT_CHANNELS"], levels=levels, norm=norm, fuse=fuse)
    if res5_head and (rpn, heads) == (["res4"], ["res4"]) and m["RESNETS"]["DEPTH"] >= 50:
        return NeckConfig(kind="c4")
    if (
        not res5_head
        and (rpn, heads) == (["res5"], ["res5"])
        and m["RESNETS"]["RES5_DILATION"] == 2
    ):
        return NeckConfig(kind="dc5")
    raise WeightsError(
        f"{path}: {m['ROI_HEADS']['NAME']} on {heads}, RPN on {rpn}, RESNETS.DEPTH {m['RESNETS']['DEPTH']}, RES5_DILATION "
        f"{m['RESNETS']['RES5_DILATION']}: without FPN, "
        "C4 (Res5ROIHeads on res4, depth 50 and more) and DC5 (StandardROIHeads on res5, dilation 2) can be loaded."
    )


def _trunk(m: Mapping[str, Any], neck: NeckConfig, path: Path) -> TrunkConfig:
    r = m["RESNETS"]
    return TrunkConfig(
        depth=_choose(r["DEPTH"], {d: d for d in BLOCKS}, "MODEL.RESNETS.DEPTH", path),
        groups=r["NUM_GROUPS"],
        width_per_group=r["WIDTH_PER_GROUP"],
        stem_channels=r["STEM_OUT_CHANNELS"],
        res2_channels=r["RES2_OUT_CHANNELS"],
        stride_in_1x1=r["STRIDE_IN_1X1"] and r["DEPTH"] >= 50,
        res5_dilation=1
        if neck.kind == "c4"
        else _choose(r["RES5_DILATION"], {1: 1, 2: 2}, "MODEL.RESNETS.RES5_DILATION", path),
        norm=_choose(r["NORM"], _NORMS, "MODEL.RESNETS.NORM", path),
        frozen_stages=m["BACKBONE"]["FREEZE_AT"],
    )


def _rpn(m: Mapping[str, Any], neck: NeckConfig, path: Path) -> RPNConfig:
    r, anchors = m["RPN"], m["ANCHOR_GENERATOR"]
    levels = len(r["IN_FEATURES"])
    sizes, ratios = (
        _per_level(anchors[key], levels, f"MODEL.ANCHOR_GENERATOR.{key}", path)
        for key in ("SIZES", "ASPECT_RATIOS")
    )
    if len(set(ratios)) > 1:
        raise WeightsError(
            f"{path}: MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS differ from level to level ({ratios}), which we lack."
        )
    convs = [
        m["RESNETS"]["RES2_OUT_CHANNELS"] * {"c4": 4, "dc5": 8}[neck.kind]
        if neck.kind != "fpn"
        else neck.channels
    ]
    for width in r["CONV_DIMS"]:
        convs.append(convs[-1] if width == -1 else width)
    return RPNConfig(
        sizes=sizes,
        ratios=ratios[0],
        offset=float(anchors["OFFSET"]),
        convs=tuple(convs[1:]),
        pre_nms_train=r["PRE_NMS_TOPK_TRAIN"],
        pre_nms_test=r["PRE_NMS_TOPK_TEST"],
        post_nms_train=r["POST_NMS_TOPK_TRAIN"],
        post_nms_test=r["POST_NMS_TOPK_TEST"],
        nms_iou=float(r["NMS_THRESH"]),
        min_size=float(m["PROPOSAL_GENERATOR"]["MIN_SIZE"]),
        negative_iou=float(r["IOU_THRESHOLDS"][0]),
        positive_iou=float(r["IOU_THRESHOLDS"][-1]),
        samples=r["BATCH_SIZE_PER_IMAGE"],
        positive_fraction=float(r["POSITIVE_FRACTION"]),
        smooth_l1_beta=float(r["SMOOTH_L1_BETA"]),
        box_weights=_four(r["BBOX_REG_WEIGHTS"], "MODEL.RPN.BBOX_REG_WEIGHTS", path),
        loss_weight=float(r["LOSS_WEIGHT"]),
        box_loss_weight=float(r["LOSS_WEIGHT"] * r["BBOX_REG_LOSS_WEIGHT"]),
    )


def _box(m: Mapping[str, Any], neck: NeckConfig, most: int, path: Path) -> BoxHeadConfig:
    h, r = m["ROI_BOX_HEAD"], m["ROI_HEADS"]
    c4 = neck.kind == "c4"  # there res5 is the head, and what is said of another is not used
    return BoxHeadConfig(
        roi=_roi(h, "ROI_BOX_HEAD", path),
        convs=() if c4 else (h["CONV_DIM"],) * h["NUM_CONV"],
        fcs=() if c4 else (h["FC_DIM"],) * h["NUM_FC"],
        norm="none" if c4 else _choose(h["NORM"], _NORMS, "MODEL.ROI_BOX_HEAD.NORM", path),
        class_agnostic=h["CLS_AGNOSTIC_BBOX_REG"],
        box_weights=_four(h["BBOX_REG_WEIGHTS"], "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", path),
        samples=r["BATCH_SIZE_PER_IMAGE"],
        positive_fraction=float(r["POSITIVE_FRACTION"]),
        positive_iou=float(r["IOU_THRESHOLDS"][0]),
        smooth_l1_beta=float(h["SMOOTH_L1_BETA"]),
        regression_weight=float(h["BBOX_REG_LOSS_WEIGHT"]),
        sigmoid=h["USE_SIGMOID_CE"],
        score_threshold=float(r["SCORE_THRESH_TEST"]),
        nms_iou=float(r["NMS_THRESH_TEST"]),
        max_detections=most
        if most >= 0
        else m["RPN"]["POST_NMS_TOPK_TEST"] * r["NUM_CLASSES"],  # -1: all
    )


def _mask(m: Mapping[str, Any], neck: NeckConfig, path: Path) -> MaskHeadConfig:
    h = m["ROI_MASK_HEAD"]
    return MaskHeadConfig(
        roi=_roi(m["ROI_BOX_HEAD"], "ROI_BOX_HEAD", path)
        if neck.kind == "c4"
        else _roi(h, "ROI_MASK_HEAD", path),
        convs=(h["CONV_DIM"],) * h["NUM_CONV"],
        upsample=(h["CONV_DIM"],),
        norm=_choose(h["NORM"], _NORMS, "MODEL.ROI_MASK_HEAD.NORM", path),
        class_agnostic=h["CLS_AGNOSTIC_MASK"],
        paste="grid",
    )


def _keypoint(m: Mapping[str, Any], path: Path) -> KeypointHeadConfig:
    h = m["ROI_KEYPOINT_HEAD"]
    return KeypointHeadConfig(
        roi=_roi(h, "ROI_KEYPOINT_HEAD", path),
        convs=tuple(h["CONV_DIMS"]),
        shared=True,
        decode="bicubic",
        loss_weight=float(h["LOSS_WEIGHT"]),
    )


def _roi(head: Mapping[str, Any], name: str, path: Path) -> RoIConfig:
    aligned = _choose(
        head["POOLER_TYPE"],
        {"ROIAlignV2": True, "ROIAlign": False},
        f"MODEL.{name}.POOLER_TYPE",
        path,
    )
    return RoIConfig(
        size=head["POOLER_RESOLUTION"],
        sampling_ratio=max(0, head["POOLER_SAMPLING_RATIO"]),
        aligned=aligned,
    )


def _categories(settings: Mapping[str, Any], keypoints: bool) -> tuple[Category, ...]:
    """Numbers, for the file has no names; but COCO's own where the data sets and the count are COCO's."""
    m, sets = settings["MODEL"], settings["DATASETS"]["TRAIN"]
    count, num_keypoints = m["ROI_HEADS"]["NUM_CLASSES"], m["ROI_KEYPOINT_HEAD"]["NUM_KEYPOINTS"]
    coco = bool(sets) and all(
        str(name).startswith(("coco_20", "keypoints_coco_20")) for name in sets
    )
    if not keypoints:
        return coco_categories() if coco and count == 80 else make_categories(count)
    one = person() if num_keypoints == 17 else make_categories(1, num_keypoints)[0]
    one = replace(one, sigmas=tuple(float(s) for s in settings["TEST"]["KEYPOINT_OKS_SIGMAS"]))
    return tuple(
        replace(one, name="person" if coco and count == 1 else str(i + 1), id=i + 1)
        for i in range(count)
    )


def _per_level(values: Any, levels: int, key: str, path: Path) -> tuple[tuple[float, ...], ...]:
    """One list for each level, from one for each or one for all."""
    lists = values if isinstance(values[0], list) else [values]
    if len(lists) not in (1, levels):
        raise WeightsError(
            f"{path}: {key} has {len(lists)} lists, must be 1 or one for each of the {levels} levels."
        )
    return tuple(
        tuple(float(v) for v in one) for one in (lists * levels if len(lists) == 1 else lists)
    )


def _four(values: Sequence[float], key: str, path: Path) -> tuple[float, float, float, float]:
    if len(values) != 4:
        raise WeightsError(
            f"{path}: {key} has {len(values)} values (rotated boxes?), four are understood."
        )
    return (float(values[0]), float(values[1]), float(values[2]), float(values[3]))


def _choose(value: Any, choices: Mapping[Any, Any], key: str, path: Path) -> Any:
    """Our word for a value, or a refusal that names it."""
    if value not in choices:
        known = ", ".join(repr(c) for c in choices)
        what = f" ({_LACKED[value]})" if isinstance(value, str) and value in _LACKED else ""
        raise WeightsError(
            f"{path}: {key} is {value!r}{what}, which we lack; models with {known} can be loaded."
        )
    return choices[value]
