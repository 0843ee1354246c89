"""Converts Detectron2's models to our configuration and weights.

In:  the weights of a `GeneralizedRCNN` (`model_final.pth` or a `.pkl` of the model zoo), and the
     `config.yaml` that Detectron2 writes beside them.
Out: a `ModelConfig` and a state dict with our names.

The `config.yaml` is required, because INPUT.FORMAT, PIXEL_STD, STRIDE_IN_1X1 and many more settings
change predictions without changing a shape. Unsupported and unknown parts raise an error that names
them. Settings that matter in training only (other losses, the sampling of regions) do not.
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
from ..runtime.plain_data import PlainData
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
# The supported parts; any other value of these settings is refused.
_PARTS = {
    "META_ARCHITECTURE": ("GeneralizedRCNN",),
    "BACKBONE.NAME": ("build_resnet_fpn_backbone", "build_resnet_backbone"),
    "PROPOSAL_GENERATOR.NAME": ("RPN",),
    "ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "RPN.HEAD_NAME": ("StandardRPNHead",),
    "ROI_HEADS.NAME": ("StandardROIHeads", "Res5ROIHeads"),
}
# What the names of unsupported parts stand for.
_UNSUPPORTED = {
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
    """Returns the configuration, and the weights under our names.

    Args:
        state: the weights under Detectron2's names.
        path: the file that they are from, with its `config.yaml` in the same folder.

    Raises:
        WeightsError: no configuration, or one with unsupported parts.
    """
    candidates = [path.with_name("config.yaml"), path.with_suffix(".yaml")]
    config_path = next((p for p in candidates if p.is_file()), None)
    if config_path is None:
        raise WeightsError(
            f"a model of Detectron2 needs its configuration beside it as {candidates[0]}. "
            "The color order, the scale of pixels and more are not in the weights. "
            "Detectron2 writes it into OUTPUT_DIR; for a model of the zoo, "
            "write model_zoo.get_config(...).dump() into that file."
        )

    config = model_config(read_config(config_path), config_path)
    return config, renamed(state, config.neck.levels[0])


def model_config(settings: PlainData, path: Path) -> ModelConfig:
    """Returns our configuration of the network that Detectron2 builds from its settings.

    Args:
        settings: Detectron2's settings, completed with its defaults.
        path: the file that they are from, for error messages.

    Raises:
        WeightsError: the settings have an unsupported part.
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


def _refuse_others(settings: PlainData, path: Path) -> None:
    """Raises an error that names the first unsupported part."""
    if settings["VERSION"] != 2:
        raise WeightsError(
            f"{path}: expected a configuration of version 2, got version {settings['VERSION']}; "
            "load and dump it with Detectron2."
        )

    m = settings["MODEL"]
    parts = dict(_PARTS)
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
            f"{path}: MODEL.LOAD_PROPOSALS, precomputed proposals, is not supported; "
            "models with their own RPN are."
        )
    if any(m["RESNETS"]["DEFORM_ON_PER_STAGE"]):
        raise WeightsError(
            f"{path}: MODEL.RESNETS.DEFORM_ON_PER_STAGE, deformable convolution, is not supported."
        )
    if settings["TEST"]["AUG"]["ENABLED"]:
        warnings.warn(
            f"{path}: ignoring TEST.AUG, because test-time augmentation is not part of a model. "
            'To use it, predict with tta=, for example tta="flip".',
            stacklevel=5,
        )


def _input(settings: PlainData, neck: NeckConfig, path: Path) -> InputConfig:
    m = settings["MODEL"]
    given = settings["INPUT"]
    mean = m["PIXEL_MEAN"]
    std = m["PIXEL_STD"]
    if len(mean) != 3 or len(std) != 3:
        raise WeightsError(
            f"{path}: MODEL.PIXEL_MEAN: expected 3 channels, got {len(mean)} "
            f"(and {len(std)} in PIXEL_STD)."
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


def _neck(m: PlainData, path: Path) -> NeckConfig:
    """Returns FPN, C4 or DC5, if RPN and heads read the levels that they read in the model zoo."""
    rpn = m["RPN"]["IN_FEATURES"]
    heads = m["ROI_HEADS"]["IN_FEATURES"]
    fpn = m["FPN"]
    res5_head = m["ROI_HEADS"]["NAME"] == "Res5ROIHeads"
    if m["BACKBONE"]["NAME"] == "build_resnet_fpn_backbone":
        levels = tuple(int(name.removeprefix("res")) for name in fpn["IN_FEATURES"])
        expected = [f"p{level}" for level in levels]
        if (
            res5_head
            or levels[-1:] != (5,)
            or levels != tuple(range(levels[0], 6))
            or heads != expected
            or rpn != [*expected, "p6"]
        ):
            raise WeightsError(
                f"{path}: FPN.IN_FEATURES {fpn['IN_FEATURES']}, RPN.IN_FEATURES {rpn}, "
                f"{m['ROI_HEADS']['NAME']}.IN_FEATURES {heads} are not supported. "
                "Supported are pyramids that end in res5, with an RPN that reads all levels and "
                "p6, and StandardROIHeads that read all but p6."
            )
        fuses = {"sum": "sum", "avg": "average"}
        return NeckConfig(
            channels=fpn["OUT_CHANNELS"],
            levels=levels,
            norm=_choose(fpn["NORM"], _NORMS, "MODEL.FPN.NORM", path),
            fuse=_choose(fpn["FUSE_TYPE"], fuses, "MODEL.FPN.FUSE_TYPE", path),
        )

    if res5_head and (rpn, heads) == (["res4"], ["res4"]) and m["RESNETS"]["DEPTH"] >= 50:
        return NeckConfig(kind="c4")
    if (
        not res5_head
        and (rpn, heads) == (["res5"], ["res5"])
        and m["RESNETS"]["RES5_DILATION"] == 2
    ):
        return NeckConfig(kind="dc5")

    raise WeightsError(
        f"{path}: {m['ROI_HEADS']['NAME']} on {heads}, RPN on {rpn}, "
        f"RESNETS.DEPTH {m['RESNETS']['DEPTH']}, "
        f"RES5_DILATION {m['RESNETS']['RES5_DILATION']} are not supported. "
        "Supported without FPN are C4 (Res5ROIHeads on res4, depth 50 and more) "
        "and DC5 (StandardROIHeads on res5, dilation 2)."
    )


def _trunk(m: PlainData, neck: NeckConfig, path: Path) -> TrunkConfig:
    r = m["RESNETS"]
    # C4 has res5 in its head, which is never dilated.
    dilation: Any = 1
    if neck.kind != "c4":
        key = "MODEL.RESNETS.RES5_DILATION"
        dilation = _choose(r["RES5_DILATION"], {1: 1, 2: 2}, key, path)

    return TrunkConfig(
        depth=_choose(r["DEPTH"], {d: d for d in BLOCKS}, "MODEL.RESNETS.DEPTH", path),
        groups=r["NUM_GROUPS"],
        width_per_group=r["WIDTH_PER_GROUP"],
        stem_channels=r["STEM_OUT_CHANNELS"],
        res2_channels=r["RES2_OUT_CHANNELS"],
        stride_in_1x1=r["STRIDE_IN_1X1"] and r["DEPTH"] >= 50,
        res5_dilation=dilation,
        norm=_choose(r["NORM"], _NORMS, "MODEL.RESNETS.NORM", path),
        frozen_stages=m["BACKBONE"]["FREEZE_AT"],
    )


def _rpn(m: PlainData, neck: NeckConfig, path: Path) -> RPNConfig:
    r = m["RPN"]
    anchors = m["ANCHOR_GENERATOR"]
    levels = len(r["IN_FEATURES"])
    sizes, ratios = (
        _per_level(anchors[key], levels, f"MODEL.ANCHOR_GENERATOR.{key}", path)
        for key in ("SIZES", "ASPECT_RATIOS")
    )
    if len(set(ratios)) > 1:
        raise WeightsError(
            f"{path}: MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS that differ between levels ({ratios}) "
            "are not supported."
        )

    # A width of -1 means as many channels as the layer before has.
    if neck.kind == "fpn":
        convs = [neck.channels]
    else:
        convs = [m["RESNETS"]["RES2_OUT_CHANNELS"] * {"c4": 4, "dc5": 8}[neck.kind]]
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


def _box(m: PlainData, neck: NeckConfig, most: int, path: Path) -> BoxHeadConfig:
    h = m["ROI_BOX_HEAD"]
    r = m["ROI_HEADS"]
    c4 = neck.kind == "c4"  # res5 is the head then, and settings of other layers are not used
    if most < 0:  # -1: no limit
        most = m["RPN"]["POST_NMS_TOPK_TEST"] * r["NUM_CLASSES"]

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
        max_detections=most,
    )


def _mask(m: PlainData, neck: NeckConfig, path: Path) -> MaskHeadConfig:
    h = m["ROI_MASK_HEAD"]
    roi_head = "ROI_BOX_HEAD" if neck.kind == "c4" else "ROI_MASK_HEAD"
    return MaskHeadConfig(
        roi=_roi(m[roi_head], roi_head, path),
        convs=(h["CONV_DIM"],) * h["NUM_CONV"],
        upsample=(h["CONV_DIM"],),
        norm=_choose(h["NORM"], _NORMS, "MODEL.ROI_MASK_HEAD.NORM", path),
        class_agnostic=h["CLS_AGNOSTIC_MASK"],
        paste="grid",
    )


def _keypoint(m: PlainData, path: Path) -> KeypointHeadConfig:
    h = m["ROI_KEYPOINT_HEAD"]
    return KeypointHeadConfig(
        roi=_roi(h, "ROI_KEYPOINT_HEAD", path),
        convs=tuple(h["CONV_DIMS"]),
        shared=True,
        decode="bicubic",
        loss_weight=float(h["LOSS_WEIGHT"]),
    )


def _roi(head: PlainData, name: str, path: Path) -> RoIConfig:
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


def _categories(settings: PlainData, keypoints: bool) -> tuple[Category, ...]:
    """Returns COCO's categories if data sets and count are COCO's; else numbered ones.

    The file has no names.
    """
    m = settings["MODEL"]
    sets = settings["DATASETS"]["TRAIN"]
    count = m["ROI_HEADS"]["NUM_CLASSES"]
    num_keypoints = m["ROI_KEYPOINT_HEAD"]["NUM_KEYPOINTS"]
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
    """Returns one list per level, from one per level or one for all."""
    lists = values if isinstance(values[0], list) else [values]
    if len(lists) not in (1, levels):
        raise WeightsError(
            f"{path}: {key}: expected 1 list, or one for each level ({levels}), got {len(lists)}."
        )
    if len(lists) == 1:
        lists = lists * levels
    return tuple(tuple(float(v) for v in one) for one in lists)


def _four(values: Sequence[float], key: str, path: Path) -> tuple[float, float, float, float]:
    if len(values) != 4:
        raise WeightsError(
            f"{path}: {key}: expected 4 values, got {len(values)}, perhaps for rotated boxes."
        )
    return (float(values[0]), float(values[1]), float(values[2]), float(values[3]))


def _choose(value: Any, choices: Mapping[Any, Any], key: str, path: Path) -> Any:
    """Returns our value for one of Detectron2's, or raises an error that names it."""
    if value not in choices:
        known = ", ".join(repr(c) for c in choices)
        what = (
            f" ({_UNSUPPORTED[value]})" if isinstance(value, str) and value in _UNSUPPORTED else ""
        )
        raise WeightsError(
            f"{path}: {key}: {value!r}{what} is not supported; supported values: {known}."
        )
    return choices[value]
