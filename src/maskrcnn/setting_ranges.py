"""The ranges of settings that are numbers: `out_of_range(TrainConfig, "batch_size", 0)`.

In:  a setting of a configuration, and its value.
Out: what was expected, as text; "" if the value is within its range.

A setting without an entry takes any number. A tuple is checked value by value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from . import config


@dataclasses.dataclass(frozen=True)
class _Range:
    """The values that a setting may have."""

    text: str
    least: float
    most: float = float("inf")
    is_open: bool = False
    """Whether `least` itself is excluded."""
    is_open_above: bool = False
    """Whether `most` itself is excluded."""

    def contains(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is."""
        above = value > self.least if self.is_open else value >= self.least
        return above and (value < self.most if self.is_open_above else value <= self.most)


_KINDS = {
    "counts": _Range("at least 1", 1),
    "positive": _Range("more than 0", 0, is_open=True),
    "not_negative": _Range("at least 0", 0),
    "shares": _Range("0 to 1", 0, 1),
    "stages": _Range("0 to 5", 0, 5),
    "decays": _Range("at least 0 and below 1", 0, 1, is_open_above=True),
}


def _ranges(**names: str) -> Mapping[str, _Range]:
    """Ranges by setting, from the names of the settings of each kind."""
    return {name: _KINDS[kind] for kind, listed in names.items() for name in listed.split()}


_RANGES: Mapping[type, Mapping[str, _Range]] = {
    config.TrainConfig: _ranges(
        counts="batch_size accumulate reference_batch patience",
        positive="epochs steps max_time learning_rate evaluate_every",
        not_negative="weight_decay warmup clip_norm workers checkpoint_every seed",
        shares="repeat_threshold unreadable gamma milestones",
        decays="ema momentum",
    ),
    config.AugmentConfig: _ranges(
        counts="crop copy_paste_choices",
        positive="scale",
        not_negative="rotation brightness contrast saturation hue",
        shares="flip_horizontal flip_vertical copy_paste",
    ),
    config.UnlabeledConfig: _ranges(
        positive="ratio weight",
        shares="burn_in ramp threshold ignore_threshold mask_threshold keypoint_threshold",
    ),
    config.InputConfig: _ranges(counts="min_size max_size size_divisor", positive="scale std"),
    config.TrunkConfig: _ranges(
        counts="groups width_per_group stem_channels res2_channels",
        not_negative="norm_eps",
        stages="frozen_stages",
    ),
    config.NeckConfig: _ranges(counts="channels"),
    config.RPNConfig: _ranges(
        counts="convs pre_nms_train pre_nms_test post_nms_train post_nms_test samples",
        positive="sizes ratios box_weights",
        not_negative="min_size smooth_l1_beta loss_weight box_loss_weight",
        shares="nms_iou positive_iou negative_iou positive_fraction",
    ),
    config.RoIConfig: _ranges(counts="size", not_negative="sampling_ratio"),
    config.BoxHeadConfig: _ranges(
        counts="convs fcs samples max_detections",
        positive="box_weights soft_sigma",
        not_negative="min_size smooth_l1_beta classification_weight regression_weight",
        shares="positive_fraction positive_iou score_threshold nms_iou",
    ),
    config.BoxMaskConfig: _ranges(
        counts="enlarge",
        not_negative="projection_weight outside_weight fill_weight background_difference "
        "pairwise_weight color_difference beside_points teacher_weight",
        shares="overlap_weight ramp teacher_confidence",
    ),
    config.MaskHeadConfig: _ranges(
        counts="convs upsample max_positives truth_size context",
        not_negative="loss_weight",
        shares="threshold",
    ),
    config.KeypointHeadConfig: _ranges(counts="convs max_positives", not_negative="loss_weight"),
}


def out_of_range(kind: type, name: str, value: Any) -> str:
    """Returns what was expected of a setting, and what it is; "" if it is within its range.

    Args:
        kind: the configuration that has the setting.
        name: of the setting.
        value: of the right type.
    """
    allowed = _RANGES.get(kind, {}).get(name)
    if allowed is None or all(allowed.contains(number) for number in _numbers(value)):
        return ""
    return f"expected {allowed.text}, got {value}"


def all_out_of_range(settings: Any, where: str = "") -> list[str]:
    """Returns one line per setting of a configuration, and of its parts, that is out of range.

    Args:
        settings: the configuration.
        where: text put before the names.
    """
    lines: list[str] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            lines += all_out_of_range(value, f"{where}{field.name}.")
        elif text := out_of_range(type(settings), field.name, value):
            lines.append(f"{where}{field.name}: {text}")
    return lines


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value; none if it is None or text."""
    if isinstance(value, tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value
