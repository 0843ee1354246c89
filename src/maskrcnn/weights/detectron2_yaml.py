"""Reads Detectron2's `config.yaml`.

In:  the file that Detectron2 writes beside its checkpoints, or one written by hand, with `_BASE_`.
Out: a nested dict of the settings that describe the network and its predictions, completed with
     Detectron2's defaults; each value has the type of its default.

No code in the file is run.
"""

from __future__ import annotations

import ast
import contextlib
import warnings
from pathlib import Path
from typing import Any

import yaml

from ..runtime.plain_data import PlainData, PlainDict
from .pickles import WeightsError

# Detectron2's defaults (detectron2/config/defaults.py, version 2) of the sections that describe the
# network and its predictions.
DEFAULTS = """
VERSION: 2
INPUT: {FORMAT: BGR, MIN_SIZE_TEST: 800, MAX_SIZE_TEST: 1333}
TEST: {DETECTIONS_PER_IMAGE: 100, KEYPOINT_OKS_SIGMAS: [], AUG: {ENABLED: false}}
DATASETS: {TRAIN: []}
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: false
  KEYPOINT_ON: false
  LOAD_PROPOSALS: false
  PIXEL_MEAN: [103.53, 116.28, 123.675]
  PIXEL_STD: [1.0, 1.0, 1.0]
  BACKBONE: {NAME: build_resnet_backbone, FREEZE_AT: 2}
  FPN: {IN_FEATURES: [], OUT_CHANNELS: 256, NORM: "", FUSE_TYPE: sum}
  PROPOSAL_GENERATOR: {NAME: RPN, MIN_SIZE: 0}
  ANCHOR_GENERATOR: {NAME: DefaultAnchorGenerator, SIZES: [[32, 64, 128, 256, 512]],
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]], ANGLES: [[-90, 0, 90]], OFFSET: 0.0}
  RPN: {HEAD_NAME: StandardRPNHead, IN_FEATURES: [res4], BOUNDARY_THRESH: -1,
    IOU_THRESHOLDS: [0.3, 0.7], IOU_LABELS: [0, -1, 1], BATCH_SIZE_PER_IMAGE: 256,
    POSITIVE_FRACTION: 0.5, BBOX_REG_LOSS_TYPE: smooth_l1, BBOX_REG_LOSS_WEIGHT: 1.0,
    BBOX_REG_WEIGHTS: [1.0, 1.0, 1.0, 1.0], SMOOTH_L1_BETA: 0.0, LOSS_WEIGHT: 1.0,
    PRE_NMS_TOPK_TRAIN: 12000, PRE_NMS_TOPK_TEST: 6000, POST_NMS_TOPK_TRAIN: 2000,
    POST_NMS_TOPK_TEST: 1000, NMS_THRESH: 0.7, CONV_DIMS: [-1]}
  ROI_HEADS: {NAME: Res5ROIHeads, NUM_CLASSES: 80, IN_FEATURES: [res4], IOU_THRESHOLDS: [0.5],
    IOU_LABELS: [0, 1], BATCH_SIZE_PER_IMAGE: 512, POSITIVE_FRACTION: 0.25,
    SCORE_THRESH_TEST: 0.05, NMS_THRESH_TEST: 0.5, PROPOSAL_APPEND_GT: true}
  ROI_BOX_HEAD: {NAME: "", BBOX_REG_LOSS_TYPE: smooth_l1, BBOX_REG_LOSS_WEIGHT: 1.0,
    BBOX_REG_WEIGHTS: [10.0, 10.0, 5.0, 5.0], SMOOTH_L1_BETA: 0.0, POOLER_RESOLUTION: 14,
    POOLER_SAMPLING_RATIO: 0, POOLER_TYPE: ROIAlignV2, NUM_FC: 0, FC_DIM: 1024, NUM_CONV: 0,
    CONV_DIM: 256, NORM: "", CLS_AGNOSTIC_BBOX_REG: false, TRAIN_ON_PRED_BOXES: false,
    USE_FED_LOSS: false, USE_SIGMOID_CE: false, FED_LOSS_FREQ_WEIGHT_POWER: 0.5,
    FED_LOSS_NUM_CLASSES: 50}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, POOLER_RESOLUTION: 14, POOLER_SAMPLING_RATIO: 0,
    NUM_CONV: 0, CONV_DIM: 256, NORM: "", CLS_AGNOSTIC_MASK: false, POOLER_TYPE: ROIAlignV2}
  ROI_KEYPOINT_HEAD: {NAME: KRCNNConvDeconvUpsampleHead, POOLER_RESOLUTION: 14,
    POOLER_SAMPLING_RATIO: 0, NUM_KEYPOINTS: 17, MIN_KEYPOINTS_PER_IMAGE: 1,
    CONV_DIMS: [512, 512, 512, 512, 512, 512, 512, 512],
    NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS: true, LOSS_WEIGHT: 1.0, POOLER_TYPE: ROIAlignV2}
  RESNETS: {DEPTH: 50, OUT_FEATURES: [res4], NUM_GROUPS: 1, NORM: FrozenBN, WIDTH_PER_GROUP: 64,
    STRIDE_IN_1X1: true, RES5_DILATION: 1, RES2_OUT_CHANNELS: 256, STEM_OUT_CHANNELS: 64,
    DEFORM_ON_PER_STAGE: [false, false, false, false], DEFORM_MODULATED: false,
    DEFORM_NUM_GROUPS: 1}
"""

# Sections in which a key that Detectron2 does not have gets a warning, because a fork may use it.
_WATCHED = (
    "BACKBONE",
    "FPN",
    "ANCHOR_GENERATOR",
    "RPN",
    "ROI_HEADS",
    "ROI_BOX_HEAD",
    "ROI_MASK_HEAD",
    "ROI_KEYPOINT_HEAD",
    "RESNETS",
)


# libyaml's reader is ten times faster; some builds of pyyaml lack it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """YAML without code; reads tuples, which old Detectron2 versions wrote with a tag, as lists."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: loader.construct_sequence(node, deep=True),
)


def read_config(path: Path) -> PlainDict:
    """Reads a Detectron2 configuration and merges it with its `_BASE_` and the defaults.

    Warns about settings that Detectron2 does not have.

    Raises:
        WeightsError: not such a configuration, or a value of the wrong type.
    """
    unknown: list[str] = []
    settings = _merge(yaml.load(DEFAULTS, _Loader), _with_base(path, ()), path, "", unknown)
    if unknown:
        warnings.warn(
            f"{path}: settings that Detectron2 does not have: {', '.join(unknown)}. "
            "If a fork uses them, this model's predictions will differ.",
            stacklevel=5,
        )
    return settings


def _with_base(path: Path, above: tuple[Path, ...]) -> PlainDict:
    """Reads the settings of a file on top of those of its `_BASE_`."""
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        referrer = f" (the _BASE_ of {above[-1]})" if above else ""
        reason = str(error).replace("\n", " ")
        raise WeightsError(
            f"{path}{referrer}: cannot be read: {reason}. "
            "Write the whole configuration into one file with cfg.dump()."
        ) from error

    if (
        not isinstance(given, dict)
        or (not above and "MODEL" not in given and "_BASE_" not in given)
        or "_target_" in str(given.get("model", ""))
    ):
        raise WeightsError(
            f"{path}: expected a Detectron2 YAML configuration, a dict with MODEL, INPUT, ...; "
            "lazy configurations are not supported."
        )

    base = given.pop("_BASE_", None)
    if base is None:
        return given
    base_path = (path.parent / Path(str(base)).expanduser()).resolve()
    if base_path in above:
        raise WeightsError(f"{path}: its _BASE_ leads back to the file itself.")
    return _over(_with_base(base_path, (*above, path.resolve())), given)


def _over(base: PlainDict, given: PlainData) -> PlainDict:
    """Returns nested settings in which those of `given` replace those of `base`."""
    both = {
        k: _over(base[k], v)
        for k, v in given.items()
        if isinstance(v, dict) and isinstance(base.get(k), dict)
    }
    return {**base, **given, **both}


def _merge(
    defaults: PlainData,
    given: PlainData,
    path: Path,
    where: str,
    unknown: list[str],
) -> PlainDict:
    """Returns the defaults with the given settings on top, each as the type of its default.

    Sections that do not concern the network are left out. Names that are not among the defaults are
    added to `unknown`.
    """
    merged = dict(defaults)
    for key, value in given.items():
        name = f"{where}{key}"
        if key not in defaults:
            if where.removeprefix("MODEL.").rstrip(".") in _WATCHED:
                unknown.append(name)
            continue

        default = defaults[key]
        if isinstance(default, dict):
            if not isinstance(value, dict):
                raise WeightsError(f"{path}: {name}: expected a section, got {value!r}.")
            merged[key] = _merge(default, value, path, f"{name}.", unknown)
        else:
            merged[key] = _like(default, value, name, path)
    return merged


def _like(default: Any, value: Any, name: str, path: Path) -> Any:
    """Returns a value as the type of its default; strings of Python literals are parsed."""
    if isinstance(value, str) and not isinstance(default, str):
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    value = _lists(value)

    if value is None and isinstance(default, str):
        return ""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(default, int)
        and not isinstance(default, bool)
        and isinstance(value, float)
        and value.is_integer()
    ):
        return int(value)
    if type(value) is not type(default):
        raise WeightsError(f"{path}: {name}: expected a value like {default!r}, got {value!r}.")
    return value


def _lists(value: Any) -> Any:
    """Replaces tuples by lists, also inside lists."""
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value
