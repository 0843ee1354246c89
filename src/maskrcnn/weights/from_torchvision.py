"""Converts torchvision's detection models to our configuration and weights.

In:  the state dict of `maskrcnn_resnet50_fpn`, `..._v2`, `keypointrcnn_resnet50_fpn`,
     `fasterrcnn_resnet50_fpn(_v2)`, or of a variant with another ResNet or other widths.
Out: a `ModelConfig` and a state dict with our names.

The configuration is read from the names and shapes. Settings that a state dict does not contain
(thresholds, sizes, anchors) are torchvision's defaults.

The background is output 0 in torchvision and the last output here, so torchvision's label l is our
l - 1. Boxes and masks of the background class are dropped.
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

# Names before torchvision 0.13 and their current ones, as in its own `_load_from_state_dict`.
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    *(
        (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(weight|bias)", rf"roi_heads.mask_head.{i}.0.\1")
        for i in range(8)
    ),
)
# torchvision's names and ours.
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
    """Returns whether the weights have the names of a torchvision detection model."""
    return any(k.startswith("backbone.body.") for k in state) and any(
        k.startswith(("roi_heads.", "head.")) for k in state
    )


def convert(
    state: Mapping[str, Tensor], published: Weights | None = None, bn_eps: float | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Returns the configuration, and the weights under our names.

    Args:
        state: torchvision's state dict, with names of any version.
        published: the catalog's record if the file is a published one; it has the right eps.
        bn_eps: value that the trunk's BatchNorm adds to the variance; by default that of
            `published`, else 1e-5, with a warning if that is uncertain.

    Raises:
        WeightsError: the model has unsupported parts.
    """
    state = {_renamed(key, _OLD_NAMES) or key: value for key, value in state.items()}
    _refuse_others(state)
    config = _config(state, published, bn_eps)
    return config, _our_names(state)


def _refuse_others(state: Mapping[str, Tensor]) -> None:
    """Raises an error that names the first unsupported part."""
    if any(k.startswith("head.") for k in state):
        raise WeightsError(
            "a one-stage detector of torchvision (RetinaNet, FCOS or SSD) is not supported; "
            "Faster, Mask and Keypoint R-CNN are."
        )

    if "backbone.body.layer1.0.conv1.weight" not in state:
        raise WeightsError(
            "its trunk is not a ResNet (perhaps a MobileNet) and is not supported; "
            "torchvision's detectors with a ResNet or ResNeXt and FPN are."
        )

    if (
        "backbone.fpn.inner_blocks.0.0.weight" not in state
        or "roi_heads.box_predictor.cls_score.weight" not in state
    ):
        raise WeightsError(
            "it lacks torchvision's feature pyramid or box predictor; "
            "Faster, Mask and Keypoint R-CNN with FPN are supported."
        )

    levels = _count(state, r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.weight")
    anchors = len(state["rpn.head.cls_logits.weight"])
    if (levels, anchors) != (4, 3):
        raise WeightsError(
            "expected 4 pyramid levels and 3 anchors per cell, as in torchvision's models, "
            f"got {levels} and {anchors}. The file does not contain the anchors' sizes: "
            "build the ModelConfig and copy the weights by hand."
        )


def _config(
    state: Mapping[str, Tensor], published: Weights | None, bn_eps: float | None
) -> ModelConfig:
    """Returns the configuration that the names and shapes imply."""
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
    """Returns COCO's categories if their number is COCO's, else numbered ones.

    With a keypoint head, all of them have its one skeleton.
    """
    if not keypoints:
        return coco_categories(unused=True) if count == 90 else make_categories(count)

    skeleton = person() if keypoints == 17 else make_categories(1, keypoints)[0]
    if count == 1 and keypoints == 17:
        return (replace(skeleton, name="person", id=1),)
    return tuple(replace(skeleton, name=str(i + 1), id=i + 1) for i in range(count))


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
            f"its trunk has {blocks} residual blocks, which is not supported; "
            f"ResNets of depth {', '.join(map(str, BLOCKS))} are."
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
    """Returns the eps of the trunk's BatchNorm: given, from the catalog, or torchvision's default.

    Warns if the default may be wrong.
    """
    if bn_eps is not None:
        return bn_eps
    if norm == "frozen" and published is None:
        warnings.warn(
            "the trunk has frozen BatchNorm, and the file does not contain its eps. "
            "Using 1e-5, which is right for models trained from ImageNet weights. "
            "torchvision's COCO_V1 weights and models fine-tuned from them need 0: "
            "load(..., bn_eps=0.0). Pass bn_eps to silence this warning.",
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
    convs = _widths(state, r"roi_heads\.keypoint_head\.(\d+)\.weight")
    return keypoint and replace(keypoint, convs=convs)


def _our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights under our names, background last.

    Unknown names are kept, and the loader reports them as unexpected keys.
    """
    ours = {}
    # torchvision counts the fully connected layers together with the convolutions and Flatten.
    linears = sorted(
        int(m[1]) for k in state if (m := re.fullmatch(r"roi_heads\.box_head\.(\d+)\.weight", k))
    )

    for key, value in state.items():
        if m := re.fullmatch(r"roi_heads\.box_head\.(\d+)\.(weight|bias)", key):
            name = f"box_head.fcs.{linears.index(int(m[1]))}.{m[2]}"
        elif m := re.fullmatch(r"roi_heads\.keypoint_head\.(\d+)\.(weight|bias)", key):
            # Every second layer is a ReLU.
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
    """Returns the new name of a weight, or None if no pattern matches."""
    for old, new in names:
        if m := re.fullmatch(old, key):
            return m.expand(new)
    return None


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)


def _widths(state: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """Returns the output channels of the layers whose names match, in their order."""
    widths = {
        int(m[1]): len(value) for key, value in state.items() if (m := re.fullmatch(pattern, key))
    }
    return tuple(widths[i] for i in sorted(widths))


def _norm(state: Mapping[str, Tensor], prefix: str) -> Norm:
    if prefix + ".num_batches_tracked" in state:
        return "batch"
    if prefix + ".running_var" in state:
        return "frozen"
    return "group" if prefix + ".weight" in state else "none"
