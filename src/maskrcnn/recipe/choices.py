"""The choices of a recipe, each a function of what was measured and of the choices before it.

In: `Choices`: the statistics of a data set, the initial weights, a device, and the settings so far.
Out: the same with more settings chosen, and a reason for each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config import ModelConfig, TrainConfig
from ..kernels.precision import computes_bfloat16
from ..preprocess import input_size
from ..settings import override_config
from ..weights.pretrained import Kind
from .fit_anchors import fit_anchors, mean_overlap
from .memory_estimate import GIB, training_bytes
from .statistics import Statistics

LITTLE = 2000  # images: below this, strong augmentation is worth more than it costs
# pixels that the median object should span in the model's input: ten cells of the finest level
OBJECT_SIDE = 40
LARGE_SIDE = 160  # px, beyond which a larger object carries no more information
LONGEST = (1024, 1333, 1600, 2048, 3072, 4096)  # longer sides of the input to try
LEAST_SIDE = 32  # px that the median object must keep where long sides are limited
CROPS = {"cpu": (256, 512), "cuda": (512, 1024)}  # px: smallest and largest side
MEMORY_SHARE = 0.8  # of the free memory
# Images to train on at least (repeats counted), in a run without a time limit.
IMAGES_SEEN = {
    "none": 30_000,
    "trunk": 20_000,
    "detector": 8_000,
    "given": 8_000,
}
EPOCHS = {  # fewest, most
    "none": (24, 300),
    "trunk": (24, 200),
    "detector": (12, 100),
    "given": (12, 100),
}
RATES = {"none": 1e-3, "trunk": 5e-4, "detector": 2e-4, "given": 2e-4}  # AdamW, 4 images per step
FEW = 500  # images, below which a pretrained trunk keeps its first two stages


class Reason(NamedTuple):
    """Why a setting has its value."""

    setting: str
    value: Any
    why: str


@dataclass
class Choices:
    """The settings chosen so far."""

    kind: Kind
    device: torch.device
    given: frozenset[str]
    model: ModelConfig
    training: TrainConfig
    reasons: list[Reason] = field(default_factory=list)
    facts: Statistics = field(init=False)

    @property
    def keeps_input(self) -> bool:
        """Whether resize rule and anchors stay: trained weights or a published model depend on
        them.
        """
        return self.kind == "detector" or self.model.input.resize == "torch"

    def choose(self, setting: str, value: Any, why: str) -> None:
        """Sets a value, unless the user gave the setting, a part of it or a group that contains
        it."""
        if any(
            name == setting or name.startswith(f"{setting}.") or setting.startswith(f"{name}.")
            for name in self.given
        ):
            self.explain(setting, "given")
            return

        if setting.startswith("model."):
            change = {setting.removeprefix("model."): value}
            self.model = override_config(self.model, change)
        else:
            self.training = override_config(self.training, {setting: value})
        self.explain(setting, why)

    def explain(self, setting: str, why: str) -> None:
        """Records the current value of a setting with a reason."""
        value: Any = self.model if setting.startswith("model.") else self.training
        for name in setting.removeprefix("model.").split("."):
            value = getattr(value, name)
        self.reasons.append(Reason(setting, value, why))


def heads(choices: Choices) -> None:
    """Removes heads for what is not annotated."""
    if choices.model.mask is not None and not (choices.facts.masks or choices.facts.points):
        choices.choose("model.mask", None, "no object has a mask annotation")
    if choices.model.keypoint is not None and not choices.facts.keypoints:
        choices.choose("model.keypoint", None, "no object has labeled keypoints")


def scale(choices: Choices) -> None:
    """Chooses the input size, so that objects span enough feature cells."""
    if choices.keeps_input:
        choices.explain("model.input.min_size", "kept: the pretrained model's resize rule")
        return
    side = np.sqrt(choices.facts.sides.prod(axis=1))
    median = np.median(side)
    small = np.quantile(side, 0.1)
    if median > LARGE_SIDE:
        scale = float(np.round(min(1.0, max(LARGE_SIDE / median, LEAST_SIDE / small)), 2))
        why = f"median object {median:.0f} px; {median * scale:.0f} px are enough"
    else:
        # In steps of one half; falling short by a tenth does not justify the next step.
        scale = float(np.clip(np.ceil(2 * OBJECT_SIDE / median - 0.2) / 2, 1.0, 4.0))
        cells = f"{median / 4:.1f} cells of the finest level"
        if scale > 1:
            cells += f" ({median * scale / 4:.1f} after scaling)"
        why = f"median object {median:.0f} px, {cells}; target {OBJECT_SIDE // 4} cells"
    choices.choose("model.input.min_size", None, "images keep their own size, times input.scale")
    if choices.model.input.min_size is None:
        choices.choose("model.input.scale", scale, why)

    start = LONGEST.index(1333 if choices.device.type == "cuda" else 1024)
    for longest in LONGEST[start:]:
        limited = replace(choices.model, input=replace(choices.model.input, max_size=longest))
        span = float(np.median(np.sqrt(_objects(limited, choices.facts).prod(axis=1))))
        if span >= min(LEAST_SIDE, 0.8 * median * scale):
            break
    choices.choose(
        "model.input.max_size",
        longest,
        f"limit of the longer side; the median object then spans {span:.0f} px",
    )


def _input_sizes(model: ModelConfig, facts: Statistics) -> np.ndarray:
    """[n, 2] (height, width) of the images in the model's input."""
    return np.array(
        [input_size(int(height), int(width), model.input) for height, width in facts.sizes]
    )


def _objects(model: ModelConfig, facts: Statistics) -> np.ndarray:
    """[N, 2] (width, height) of the objects in the model's input."""
    factors = _input_sizes(model, facts) / facts.sizes
    return facts.sides * factors[facts.image][:, ::-1]


def augment(choices: Choices) -> None:
    """Chooses the augmentation: the fewer images, the stronger."""
    little = choices.facts.images < LITTLE
    count = f"{choices.facts.images:,} images"
    _crop(choices)
    choices.choose(
        "augment.scale",
        (0.5, 1.25) if little else (0.8, 1.25),
        f"{count}: {'large' if little else 'moderate'}-scale jitter",
    )
    _orientation(choices)
    _colors(choices, count)
    if little and choices.facts.masks:
        _copy_paste(choices, count)
    _repeats(choices)


def _crop(choices: Choices) -> None:
    """A crop twice as large as large objects, within what the device trains quickly."""
    facts = choices.facts
    sizes = _input_sizes(choices.model, facts)
    large = np.quantile(_objects(choices.model, facts).max(axis=1), 0.95)
    least, most = CROPS.get(choices.device.type, CROPS["cuda"])
    crop = int(np.clip(np.ceil(2 * large / 64) * 64, least, most))

    if np.mean(sizes.max(axis=1) <= crop) > 0.95:
        choices.choose("augment.crop", None, f"images are not larger than {crop} px")
    else:
        images = np.quantile(sizes, 0.95)
        why = f"large objects span {large:.0f} px, images {images:.0f} px; crops make steps cheaper"
        choices.choose("augment.crop", crop, why)


def _orientation(choices: Choices) -> None:
    """Rotation by right angles where the images have no canonical orientation."""
    facts = choices.facts
    measured = ", ".join(f"{name} {value:.2f}" for name, value in facts.upright.items())
    if facts.has_up:
        choices.explain(
            "augment.right_angles",
            f"images may have a canonical orientation ({measured}; 0 = none). "
            "If not, set this to true and augment.flip_vertical to 0.5",
        )
    else:
        why = (
            f"no canonical orientation found ({measured}; 0 = none). "
            "If there is one, set this to false and augment.flip_vertical to 0"
        )
        choices.choose("augment.right_angles", True, why)
        choices.choose("augment.flip_vertical", 0.5, "no canonical orientation found")


def _colors(choices: Choices, count: str) -> None:
    facts = choices.facts
    strength = 0.3 if facts.images < LITTLE / 10 else 0.2
    for name in ("brightness", "contrast"):
        choices.choose(f"augment.{name}", strength, f"{count}: covers other cameras and lighting")
    if facts.colored:
        choices.choose("augment.saturation", strength, "images are colored")
        choices.choose("augment.hue", 0.02, "images are colored")


def _copy_paste(choices: Choices, count: str) -> None:
    why = f"{count}: objects pasted into other images add variety"
    choices.choose("augment.copy_paste", 0.5, why)
    if choices.facts.varied:
        why = "image brightness varies widely: objects come from similar images"
        choices.choose("augment.copy_paste_choices", 8, why)


def _repeats(choices: Choices) -> None:
    share = choices.facts.category_share
    rarest = float(share[share > 0].min())
    if rarest < 0.05 and len(share) > 1:
        why = f"rarest category in {rarest:.1%} of the images: these are repeated more often"
        choices.choose("repeat_threshold", 0.1, why)


def crowd(choices: Choices) -> None:
    """Allows enough detections for the most crowded image."""
    most = int(choices.facts.counts.max())
    cap = int(np.clip(np.ceil(most * 1.25 / 100) * 100, 100, 2000))
    choices.choose(
        "model.box.max_detections",
        cap,
        f"up to {most} objects per image, plus a quarter",
    )
    proposals = max(2 * choices.model.box.max_detections, choices.model.rpn.post_nms_test)
    for name in ("pre_nms_test", "post_nms_test"):
        if getattr(choices.model.rpn, name) < proposals:
            choices.choose(f"model.rpn.{name}", proposals, "twice max_detections")


def anchors(choices: Choices) -> None:
    """Fits anchors to the objects, at the sizes that the scale augmentation gives them."""
    rpn = choices.model.rpn
    neck = choices.model.neck
    if choices.keeps_input:
        choices.explain("model.rpn.sizes", "kept: the pretrained model's anchors")
        return
    strides = (
        tuple(2**level for level in (*neck.levels, neck.levels[-1] + 1))
        if neck.kind == "fpn"
        else (16,)
    )

    # Objects at three scales of the augmentation's range, in equal parts of its octaves.
    low, high = np.log(choices.training.augment.scale)
    sides = np.concatenate(
        [
            _objects(choices.model, choices.facts) * np.exp(low + (high - low) * share)
            for share in (1 / 6, 1 / 2, 5 / 6)
        ]
    )
    usual = (rpn.sizes, rpn.ratios)
    sizes, ratios, overlap = fit_anchors(
        sides, strides, len(rpn.sizes[0]), choices.training.augment.right_angles, usual
    )

    if sizes == rpn.sizes:
        why = f"preset kept: no others raise the mean IoU ({overlap:.3f}) by 0.01"
    else:
        before = mean_overlap(sides, strides, *usual)
        why = f"mean IoU of objects and best anchors {overlap:.3f} (preset: {before:.3f})"
    choices.choose("model.rpn.sizes", sizes, why)
    choices.choose("model.rpn.ratios", ratios, "height / width; fitted with the sizes")


def fit(choices: Choices, free: float) -> None:
    """Chooses a precision that the device computes fast, and a batch that fits the memory."""
    half = computes_bfloat16(choices.device)
    choices.choose(
        "dtype",
        "bfloat16" if half else "float32",
        f"this {choices.device.type} device supports it"
        if half
        else "bfloat16 would be emulated here",
    )
    wanted = min(8 if choices.device.type == "cuda" else 4, choices.facts.images)
    crop = choices.training.augment.crop
    largest_scale = choices.training.augment.scale[1]
    largest = np.quantile(_input_sizes(choices.model, choices.facts), 0.95, axis=0) * largest_scale
    size = (crop, crop) if crop else (int(largest[0]), int(largest[1]))

    def needed(batch: int, checkpointing: bool) -> float:
        return training_bytes(
            choices.model, batch, size, choices.training.dtype != "float32", checkpointing
        )

    # Checkpointing comes before smaller batches: it does not change the gradients.
    batch = choices.training.batch_size if "batch_size" in choices.given else wanted
    checkpointing = choices.training.activation_checkpointing
    if (
        needed(batch, checkpointing) > MEMORY_SHARE * free
        and not choices.model.trunk.timm
        and "activation_checkpointing" not in choices.given
    ):
        checkpointing = True
    while (
        batch > 1
        and "batch_size" not in choices.given
        and needed(batch, checkpointing) > MEMORY_SHARE * free
    ):
        batch //= 2

    memory = f"a step needs about {needed(batch, checkpointing) / GIB:.1f} of {free / GIB:.1f} GiB"
    choices.choose("batch_size", batch, f"{memory}; padded images of {size[0]} x {size[1]} px")
    if batch < wanted:
        why = f"batches of {batch}, so {wanted} images per step"
        choices.choose("accumulate", -(-wanted // batch), why)
    choices.choose(
        "activation_checkpointing", checkpointing, memory if checkpointing else "memory suffices"
    )

    cores = os.cpu_count() or 1
    if choices.device.type == "cuda":
        workers = min(8, cores - 1)
    else:
        workers = 0
    why = f"{cores} CPU cores beside the GPU" if workers else "the training process loads images"
    choices.choose("workers", workers, why)


def norms(choices: Choices) -> None:
    """Chooses normalization and frozen stages by the initial weights."""
    model = choices.model
    kind = choices.kind
    if kind == "none":
        batch = choices.training.batch_size
        norm = "batch" if batch >= 4 or model.trunk.timm else "group"
        enough = "enough" if batch >= 4 else "too few"
        why = f"random weights; {batch} images per batch are {enough} for BatchNorm"
        choices.choose("model.trunk.norm", norm, why)
        choices.choose("model.trunk.frozen_stages", 0, "random weights: every stage is trained")

        parts = {"neck": model.neck, "mask": model.mask, "keypoint": model.keypoint}
        if model.neck.kind == "fpn":
            why = "same as the trunk; random weights need it everywhere (He et al. 2019)"
            for name, part in parts.items():
                if part is not None:
                    choices.choose(f"model.{name}.norm", norm, why)
    elif model.trunk.timm:
        choices.explain("model.trunk.norm", "frozen keeps the pretrained statistics")
    else:
        if kind == "trunk":
            choices.choose("model.trunk.norm", "frozen", "keeps the pretrained statistics")
        images = choices.facts.images
        why = f"{images:,} images: the first stages keep their pretrained weights"
        choices.choose("model.trunk.frozen_stages", 2 if images < FEW else 1, why)


def schedule(choices: Choices) -> None:
    """Chooses the length of the run, its evaluations and its learning rate."""
    images = choices.facts.images
    kind = choices.kind
    training = choices.training
    starts = {"none": "random weights", "trunk": "pretrained trunk"}
    start = starts.get(kind, "pretrained detector")

    fewest, most = EPOCHS[kind]
    epochs = float(np.clip(round(IMAGES_SEEN[kind] / images), fewest, most))
    if training.max_time is not None:
        choices.explain(
            "max_time",
            "given; the first tenth decides the number of steps, which is corrected later",
        )
        choices.choose(
            "evaluate_every",
            1e6,
            "only at the end: within a fixed time, evaluations cost steps",
        )
    elif training.steps is not None:
        choices.explain("steps", "given")
    else:
        choices.choose("epochs", epochs, f"{start}: {images * epochs:,.0f} training images in all")
        choices.choose(
            "evaluate_every",
            max(1.0, float(round(choices.training.epochs / 12))),
            "about 12 evaluations; the best model is kept",
        )
    choices.choose(
        "learning_rate",
        RATES[kind],
        f"{start}, {training.optimizer}, at {training.reference_batch} images per step",
    )

    # With `max_time` the number of steps, and so a tenth of it, is known only after a tenth.
    long = kind == "none" and training.max_time is None
    choices.choose("warmup", 300 if long else 100, f"{start}; at most a tenth of the run")
