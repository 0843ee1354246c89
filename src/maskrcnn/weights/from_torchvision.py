"""torchvision's detection models: their state dict -> our configuration and our state dict.

In: the state dict of `maskrcnn_resnet50_fpn`, `..._v2`, `keypointrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn(_v2)`, or of a relative with
another ResNet or other widths. Everything is read off the names and shapes; what a state dict cannot tell (thresholds, sizes,
anchors) is torchvision's default.

Background is output 0 there and the last one here, so label l there is label l - 1 here; what the background class has of boxes and masks is dropped.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..config import (
    BoxHeadConfig,
    Category,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    NeckConfig,
    Norm,
    TrunkConfig,
)
from ..model.resnet import BLOCKS
from ..presets import make_categories, maskrcnn_r50_fpn_torchvision
from .catalog import Weights, coco_categories, person
from .pickles import WeightsError

# Names of torchvision before 0.13, as its own `_load_from_state_dict` renames them.
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    *(
        (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(weight|bias)", rf"roi_heads.mask_head.{i}.0.\1")
        for i in range(8)
    ),
)
_NAMES = (
    (r"backbone\.body\.(.+)", r"trunk.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.(.+)", r"neck.lateral.\1.conv.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.1\.(.+)", r"neck.lateral.\1.norm.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.0\.(.+)", r"neck.output.\1.conv.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.1\.(.+)", r"neck.output.\1.norm.\2"),
    (r"rpn\.head\.conv\.(\d+)\.0\.(.+)", r"rpn.convs.\1.\2"),
    (r"rpn\.head\.cls_logits\.(.+)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(.+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(.+)", r"box_head.fcs.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(.+)", r"box_head.fcs.1.\1"),
    (r"roi_heads\.(box|mask)_head\.(\d+)\.0\.(.+)", r"\1_head.convs.\2.conv.\3"),
    (r"roi_heads\.(box|mask)_head\.(\d+)\.1\.(.+)", r"\1_head.convs.\2.norm.\3"),
    (r"roi_heads\.box_predictor\.cls_score\.(.+)", r"box_head.class_logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.+)", r"box_head.box_deltas.\1"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(.+)", r"mask_head.upsample.0.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(.+)", r"mask_head.logits.\1"),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.(.+)", r"keypoint_head.heatmaps.\1"),
)


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a torchvision detection model with RoI heads."""
    return any(k.startswith("backbone.body.") for k in state) and any(
        k.startswith(("roi_heads.", "head.")) for k in state
    )


def convert(
    state: Mapping[str, Tensor], published: Weights | None = None, bn_eps: float | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the weights under our names.

    Args:
        state: torchvision's state dict, with names of any version.
        published: the catalog's record, where the file is a published one; it knows the eps of the frozen BatchNorm.
        bn_eps: that eps, where the caller knows it.

    Raises:
        WeightsError: the model has parts that we lack.
    """
    state = {_renamed(key, _OLD_NAMES) or key: value for key, value in state.items()}
    _refuse_others(state)
    config = _config(state, published, bn_eps)
    return config, _our_names(state)


def _refuse_others(state: Mapping[str, Tensor]) -> None:
    """What has no counterpart here is refused by name."""
    if any(k.startswith("head.") for k in state):
        raise WeightsError(
            "a one-stage detector of torchvision (RetinaNet, FCOS or SSD); only Faster, Mask and Keypoint R-CNN can be loaded."
        )
    if "backbone.body.layer1.0.conv1.weight" not in state:
        raise WeightsError(
            "its trunk is no ResNet (MobileNet?); of torchvision's detectors those with a ResNet or ResNeXt and FPN can be loaded."
        )
    if (
        "backbone.fpn.inner_blocks.0.0.weight" not in state
        or "roi_heads.box_predictor.cls_score.weight" not in state
    ):
        raise WeightsError(
            "it has no feature pyramid or no box predictor of torchvision's kind; Faster, Mask and Keypoint R-CNN with FPN can be loaded."
        )
    levels, anchors = (
        _count(state, r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.weight"),
        len(state["rpn.head.cls_logits.weight"]),
    )
    if (levels, anchors) != (4, 3):
        raise WeightsError(
            f"it has {levels} pyramid levels and {anchors} anchors a cell, torchvision's models have 4 and 3. "
            "The anchors' sizes are not in the file: build the ModelConfig and copy the weights by hand."
        )


def _config(
    state: Mapping[str, Tensor], published: Weights | None, bn_eps: float | None
) -> ModelConfig:
    """The configuration that the shapes and the names show."""
    keypoints = state.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")
    categories = _categories(
        len(state["roi_heads.box_predictor.cls_score.weight"]) - 1,
        0 if keypoints is None else keypoints.shape[1],
    )
    config = maskrcnn_r50_fpn_torchvision(categories)
    return replace(
        config,
        trunk=_trunk(config.trunk, state, published, bn_eps),
        neck=NeckConfig(
            channels=len(state["backbone.fpn.inner_blocks.0.0.weight"]),
            norm=_norm(state, "backbone.fpn.inner_blocks.0.1"),
        ),
        rpn=replace(config.rpn, convs=_widths(state, r"rpn\.head\.conv\.(\d+)\.0\.weight")),
        box=_box(config.box, state),
        mask=_mask(config.mask, state),
        keypoint=_keypoint(config.keypoint, state),
    )


def _categories(count: int, keypoints: int) -> tuple[Category, ...]:
    """COCO's where the number is COCO's, else numbers; all have the one skeleton of the keypoint head."""
    if keypoints:
        skeleton = person() if keypoints == 17 else make_categories(1, keypoints)[0]
        return tuple(
            replace(
                skeleton, name="person" if count == 1 and keypoints == 17 else str(i + 1), id=i + 1
            )
            for i in range(count)
        )
    return coco_categories(unused=True) if count == 90 else make_categories(count)


def _trunk(
    trunk: TrunkConfig, state: Mapping[str, Tensor], published: Weights | None, bn_eps: float | None
) -> TrunkConfig:
    body = "backbone.body."
    bottleneck = body + "layer1.0.conv3.weight" in state
    blocks = tuple(
        _count(state, rf"backbone\.body\.layer{i}\.(\d+)\.conv1\.weight") for i in range(1, 5)
    )
    depth = next((d for d, b in BLOCKS.items() if b == blocks and (d >= 50) == bottleneck), None)
    if depth is None:
        raise WeightsError(
            f"its trunk has {blocks} residual blocks; ResNets of depth {', '.join(map(str, BLOCKS))} can be loaded."
        )
    inner = state[body + "layer1.0.conv2.weight"]
    groups = len(inner) // inner.shape[1] if bottleneck else 1
    norm: Norm = "batch" if body + "bn1.num_batches_tracked" in state else "frozen"
    return replace(
        trunk,
        depth=depth,
        groups=groups,
        width_per_group=len(inner) // groups if bottleneck else trunk.width_per_group,
        stem_channels=len(state[body + "conv1.weight"]),
        res2_channels=len(state[body + f"layer1.0.conv{3 if bottleneck else 2}.weight"]),
        norm=norm,
        norm_eps=_eps(norm, published, bn_eps),
    )


def _eps(norm: Norm, published: Weights | None, bn_eps: float | None) -> float:
    """The eps of the trunk's BatchNorm: given, known from the catalog, or torchvision's default, with a warning where that is a guess."""
    if bn_eps is not None:
        return bn_eps
    if norm == "frozen" and published is None:
        warnings.warn(
            "the trunk has frozen BatchNorm, and a file does not say which eps it needs: 1e-5 is used, right for models trained from ImageNet "
            "weights. torchvision's COCO_V1 weights and what was fine-tuned from them need 0: load(.., bn_eps=0.0). Give bn_eps to silence this.",
            stacklevel=5,
        )
    return published.bn_eps if published else 1e-5


def _box(box: BoxHeadConfig, state: Mapping[str, Tensor]) -> BoxHeadConfig:
    if "roi_heads.box_head.fc6.weight" in state:
        return replace(
            box, fcs=tuple(len(state[f"roi_heads.box_head.fc{i}.weight"]) for i in (6, 7))
        )
    fcs = _widths(state, r"roi_heads\.box_head\.(\d+)\.weight")
    return replace(
        box,
        convs=_widths(state, r"roi_heads\.box_head\.(\d+)\.0\.weight"),
        fcs=fcs,
        norm=_norm(state, "roi_heads.box_head.0.1"),
    )


def _mask(mask: MaskHeadConfig | None, state: Mapping[str, Tensor]) -> MaskHeadConfig | None:
    if mask is None or "roi_heads.mask_predictor.conv5_mask.weight" not in state:
        return None
    upsample = (state["roi_heads.mask_predictor.conv5_mask.weight"].shape[1],)
    convs = _widths(state, r"roi_heads\.mask_head\.(\d+)\.0\.weight")
    return replace(
        mask, convs=convs, upsample=upsample, norm=_norm(state, "roi_heads.mask_head.0.1")
    )


def _keypoint(
    keypoint: KeypointHeadConfig | None, state: Mapping[str, Tensor]
) -> KeypointHeadConfig | None:
    return keypoint and replace(
        keypoint, convs=_widths(state, r"roi_heads\.keypoint_head\.(\d+)\.weight")
    )


def _our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names, background last; names that we do not know stay and are reported by the loader."""
    ours = {}
    linears = sorted(
        int(m[1]) for k in state if (m := re.fullmatch(r"roi_heads\.box_head\.(\d+)\.weight", k))
    )
    for key, value in state.items():
        if m := re.fullmatch(
            r"roi_heads\.box_head\.(\d+)\.(weight|bias)", key
        ):  # Flatten stands between convolutions and layers
            name = f"box_head.fcs.{linears.index(int(m[1]))}.{m[2]}"
        elif m := re.fullmatch(
            r"roi_heads\.keypoint_head\.(\d+)\.(weight|bias)", key
        ):  # every second one is a ReLU
            name = f"keypoint_head.convs.{int(m[1]) // 2}.conv.{m[2]}"
        else:
            name = _renamed(key, _NAMES) or key
        if name.startswith("box_head.class_logits."):
            value = torch.cat([value[1:], value[:1]])
        elif name.startswith("box_head.box_deltas."):
            value = value[4:]
        elif name.startswith("mask_head.logits."):
            value = value[1:]
        ours[name] = value
    return ours


def _renamed(key: str, names: tuple[tuple[str, str], ...]) -> str | None:
    for old, new in names:
        if m := re.fullmatch(old, key):
            return m.expand(new)
    return None


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)


def _widths(state: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """Output channels of the layers whose names match, in their order."""
    found = {
        int(m[1]): len(value) for key, value in state.items() if (m := re.fullmatch(pattern, key))
    }
    return tuple(found[i] for i in sorted(found))


def _norm(state: Mapping[str, Tensor], prefix: str) -> Norm:
    if prefix + ".num_batches_tracked" in state:
        return "batch"
    if prefix + ".running_var" in state:
        return "frozen"
    return "group" if prefix + ".weight" in state else "none"
