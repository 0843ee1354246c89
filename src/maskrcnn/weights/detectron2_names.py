"""Converts Detectron2's names of weights to ours.

In:  a state dict with Detectron2's names.
Out: one with our names. Unknown names are kept, and the loader reports them as unexpected keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_NAMES = (
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.weight", "trunk.conv1.weight"),
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.(.+)", r"trunk.bn1.\1"),
    (r"rpn_head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"rpn_head\.conv\.conv(\d+)\.(.+)", r"rpn.convs.\1.\2"),
    (r"rpn_head\.objectness_logits\.(.+)", r"rpn.objectness.\1"),
    (r"rpn_head\.anchor_deltas\.(.+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(.+)", r"box_head.class_logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.+)", r"box_head.box_deltas.\1"),
    (r"roi_heads\.mask_head\.deconv\.(.+)", r"mask_head.upsample.0.\1"),
    (r"roi_heads\.mask_head\.predictor\.(.+)", r"mask_head.logits.\1"),
    (r"roi_heads\.keypoint_head\.score_lowres\.(.+)", r"keypoint_head.heatmaps.\1"),
)
_NOT_WEIGHTS = re.compile(
    r"pixel_(?:mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d+|"
    r"roi_heads\.box_predictor\.fed_loss.*|iteration"
)


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Returns whether the weights have the names of a Detectron2 model."""
    return any(
        k.startswith(
            ("proposal_generator.", "backbone.bottom_up.", "backbone.stem.", "backbone.fpn_lateral")
        )
        for k in state
    )


def renamed(state: Mapping[str, Tensor], first_level: int) -> dict[str, Tensor]:
    """Returns the weights under our names, without entries that are not weights.

    Args:
        state: the weights under Detectron2's names.
        first_level: the finest level of the pyramid, 2 for P2.
    """
    return {
        _our_name(name, first_level): weight
        for name, weight in state.items()
        if not _NOT_WEIGHTS.fullmatch(name)
    }


def _our_name(key: str, first_level: int) -> str:
    """Returns our name of a weight, or the name itself if it is unknown."""
    if m := re.fullmatch(r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)res(\d)\.(\d+)\.(.+)", key):
        stage = "res5" if key.startswith("roi_heads.") else f"trunk.layer{int(m[1]) - 1}"
        rest = m[3].replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
        rest = re.sub(r"conv(\d)\.norm\.", r"bn\1.", rest)
        return f"{stage}.{m[2]}.{rest}"

    if m := re.fullmatch(r"backbone\.fpn_(lateral|output)(\d)\.(norm\.)?(.+)", key):
        return f"neck.{m[1]}.{int(m[2]) - first_level}.{m[3] or 'conv.'}{m[4]}"
    if m := re.fullmatch(
        r"roi_heads\.(box|mask|keypoint)_head\.(?:conv|mask_fcn|conv_fcn)(\d+)\.(norm\.)?(.+)", key
    ):
        return f"{m[1]}_head.convs.{int(m[2]) - 1}.{m[3] or 'conv.'}{m[4]}"

    if m := re.fullmatch(r"roi_heads\.box_head\.fc(\d+)\.(.+)", key):
        return f"box_head.fcs.{int(m[1]) - 1}.{m[2]}"

    for old, new in _NAMES:
        if m := re.fullmatch(old, key.removeprefix("proposal_generator.")):
            return m.expand(new)
    return key
