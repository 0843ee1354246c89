"""The single choices of a recipe, each a function of what was measured and of what was chosen before it.

In: `Choices`: the statistics of a data set, a start, a device, and the settings so far. Out: the same with more settings, and a reason for each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config import ModelConfig, TrainConfig
from ..model.optimize import computes_bfloat16
from ..preprocess import input_size
from ..settings import override_config
from ..weights.pretrained import Kind
from .fit_anchors import fit_anchors, mean_overlap
from .memory_estimate import GIB, training_bytes
from .statistics import Statistics

LITTLE = 2000  # images: below this, augmentation is worth more than it costs
OBJECT_SIDE = (
    40  # px that the median object shall span in the model's input: ten cells of the finest level
)
LARGE_SIDE = 160  # px, beyond which a larger object says nothing more
LONGEST = (1024, 1333, 1600, 2048, 3072, 4096)  # longer sides of the input that are tried
LEAST_SIDE = 32  # px that the median object must keep where long sides are limited
CROPS = {"cpu": (256, 512), "cuda": (512, 1024)}
MEMORY_SHARE = 0.8  # of what is free
IMAGES_SEEN = {
    "none": 30_000,
    "trunk": 20_000,
    "detector": 8_000,
    "given": 8_000,
}  # at least, in a training without a time limit
EPOCHS = {
    "none": (24, 300),
    "trunk": (24, 200),
    "detector": (12, 100),
    "given": (12, 100),
}  # fewest, most
RATES = {"none": 1e-3, "trunk": 5e-4, "detector": 2e-4, "given": 2e-4}  # AdamW, four images a step
FEW = 500  # images: a pretrained trunk keeps its first stages


class Reason(NamedTuple):
    """Why a setting has its value."""

    setting: str
    value: Any
    why: str


@dataclass
class Choices:
    """The settings as far as they are chosen."""

    kind: Kind
    device: torch.device
    given: frozenset[str]
    model: ModelConfig
    training: TrainConfig
    reasons: list[Reason] = field(default_factory=list)
    facts: Statistics = field(init=False)

    @property
    def imitation(self) -> bool:
        """The input and the anchors are part of what the weights know, or of a published model."""
        return self.kind == "detector" or self.model.input.resize == "torch"

    def choose(self, setting: str, value: Any, why: str) -> None:
        """Takes a value for a setting, unless the user gave one."""
        if any(
            name == setting or name.startswith(f"{setting}.") or setting.startswith(f"{name}.")
            for name in self.given
        ):
            self.note(setting, "as given")
        else:
            part, name = (
                ("model", setting.removeprefix("model."))
                if setting.startswith("model.")
                else ("training", setting)
            )
            setattr(self, part, override_config(getattr(self, part), {name: value}))
            self.note(setting, why)

    def note(self, setting: str, why: str) -> None:
        """Names the value of a setting as it is."""
        value: Any = self.model if setting.startswith("model.") else self.training
        for name in setting.removeprefix("model.").split("."):
            value = getattr(value, name)
        self.reasons.append(Reason(setting, value, why))


def heads(choices: Choices) -> None:
    """No head for what is not annotated."""
    if choices.model.mask is not None and not choices.facts.masks:
        choices.choose("model.mask", None, "no object has a mask")
    if choices.model.keypoint is not None and not choices.facts.keypoints:
        choices.choose("model.keypoint", None, "no keypoint is labeled")


def scale(choices: Choices) -> None:
    """How large the model sees the images, so that objects span enough feature cells."""
    if choices.imitation:
        choices.note("model.input.min_size", "kept: the model's own resize rule")
        return
    side = np.sqrt(choices.facts.sides.prod(axis=1))
    median, small = np.median(side), np.quantile(side, 0.1)
    if median > LARGE_SIDE:
        scale = float(np.round(min(1.0, max(LARGE_SIDE / median, LEAST_SIDE / small)), 2))
        why = f"the median object spans {median:.0f} px, of which {median * scale:.0f} are enough"
    else:
        scale = float(
            np.clip(np.ceil(2 * OBJECT_SIDE / median - 0.2) / 2, 1.0, 4.0)
        )  # halves, a tenth less is no reason for the next
        cells = f"{median / 4:.1f} cells of the finest level" + (
            f" ({median * scale / 4:.1f} when magnified)" if scale > 1 else ""
        )
        why = f"the median object spans {median:.0f} px, {cells}; {OBJECT_SIDE // 4} are wanted"
    choices.choose("model.input.min_size", None, "images keep their own scale, times the next line")
    if choices.model.input.min_size is None:
        choices.choose("model.input.scale", scale, why)
    start = LONGEST.index(1333 if choices.device.type == "cuda" else 1024)
    for longest in LONGEST[start:]:
        limited = replace(choices.model, input=replace(choices.model.input, max_size=longest))
        seen = float(np.median(np.sqrt(_objects(limited, choices.facts).prod(axis=1))))
        if seen >= min(LEAST_SIDE, 0.8 * median * scale):
            break
    choices.choose(
        "model.input.max_size",
        longest,
        f"longer sides are limited to it; the median object then spans {seen:.0f} px",
    )


def _input_sizes(model: ModelConfig, facts: Statistics) -> np.ndarray:
    """[n, 2] (height, width) of the images as the model sees them."""
    return np.array(
        [input_size(int(height), int(width), model.input) for height, width in facts.sizes]
    )


def _objects(model: ModelConfig, facts: Statistics) -> np.ndarray:
    """[N, 2] (width, height) of the objects as the model sees them."""
    factors = _input_sizes(model, facts) / facts.sizes
    return facts.sides * factors[facts.image][:, ::-1]


def augment(choices: Choices) -> None:
    """How training images vary: the fewer there are, the more."""
    facts, device = choices.facts, choices.device.type
    little, count = facts.images < LITTLE, f"{facts.images:,} images"
    sizes, sides = _input_sizes(choices.model, facts), _objects(choices.model, facts).max(axis=1)
    least, most = CROPS.get(device, CROPS["cuda"])
    crop = int(np.clip(np.ceil(2 * np.quantile(sides, 0.95) / 64) * 64, least, most))
    if np.mean(sizes.max(axis=1) <= crop) > 0.95:
        choices.choose("augment.crop", None, f"images are no larger than {crop} px")
    else:
        why = f"large objects span {np.quantile(sides, 0.95):.0f} px, images {np.quantile(sizes, 0.95):.0f} px; so a step is cheap"
        choices.choose("augment.crop", crop, why)
    choices.choose(
        "augment.scale",
        (0.5, 1.25) if little else (0.8, 1.25),
        f"{count}: {'large' if little else 'moderate'}-scale jitter",
    )
    turned = ", ".join(f"{name} {value:.2f}" for name, value in facts.upright.items())
    if facts.has_up:
        choices.note(
            "augment.right_angles",
            f"images may have an up and a down ({turned}; 0 = none): set it, and flip_vertical, if they have not",
        )
    else:
        why = f"no up and down is seen ({turned}; 0 = none): if there is one, set this to false and flip_vertical to 0"
        choices.choose("augment.right_angles", True, why)
        choices.choose("augment.flip_vertical", 0.5, "as right angles")
    strength = 0.3 if facts.images < LITTLE / 10 else 0.2
    for name in ("brightness", "contrast"):
        choices.choose(
            f"augment.{name}", strength, f"{count}: cameras and light to come will differ"
        )
    if facts.colored:
        choices.choose("augment.saturation", strength, "images are colored")
        choices.choose("augment.hue", 0.02, "images are colored")
    if facts.masks and little:
        choices.choose(
            "augment.copy_paste", 0.5, f"{count}: objects on other images are new images"
        )
        if facts.varied:
            choices.choose(
                "augment.copy_paste_choices",
                8,
                "images of several kinds: objects come from one that is alike",
            )
    rarest = float(facts.category_share[facts.category_share > 0].min())
    if rarest < 0.05 and len(facts.category_share) > 1:
        choices.choose(
            "repeat_threshold",
            0.1,
            f"the rarest category is in {rarest:.1%} of the images: they are seen more often",
        )


def crowd(choices: Choices) -> None:
    """Enough detections for the most crowded image."""
    most = int(choices.facts.counts.max())
    cap = int(np.clip(np.ceil(most * 1.25 / 100) * 100, 100, 2000))
    choices.choose(
        "model.box.max_detections",
        cap,
        f"up to {most} objects in an image, and room for a quarter more",
    )
    proposals = max(2 * choices.model.box.max_detections, choices.model.rpn.post_nms_test)
    for name in ("pre_nms_test", "post_nms_test"):
        if getattr(choices.model.rpn, name) < proposals:
            choices.choose(f"model.rpn.{name}", proposals, "twice the detections")


def anchors(choices: Choices) -> None:
    """Anchors where the objects are, at the sizes at which training shows them."""
    rpn, neck = choices.model.rpn, choices.model.neck
    if choices.imitation:
        choices.note("model.rpn.sizes", "kept: the model's own anchors")
        return
    strides = (
        tuple(2**level for level in (*neck.levels, neck.levels[-1] + 1))
        if neck.kind == "fpn"
        else (16,)
    )
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
    why = f"objects overlap their best anchor by {overlap:.3f} on average, with the preset's by {mean_overlap(sides, strides, *usual):.3f}"
    choices.choose(
        "model.rpn.sizes",
        sizes,
        why
        if sizes != rpn.sizes
        else f"the preset's: no other fits better by a hundredth ({overlap:.3f})",
    )
    choices.choose("model.rpn.ratios", ratios, "height / width; chosen with the sizes")


def fit(choices: Choices, free: float) -> None:
    """A batch that fits the memory; what the machine computes fast."""
    half = computes_bfloat16(choices.device)
    choices.choose(
        "dtype",
        "bfloat16" if half else "float32",
        f"the {choices.device.type} computes it" if half else "bfloat16 would be emulated here",
    )
    wanted = min(8 if choices.device.type == "cuda" else 4, choices.facts.images)
    crop, grown = choices.training.augment.crop, choices.training.augment.scale[1]
    largest = np.quantile(_input_sizes(choices.model, choices.facts), 0.95, axis=0) * grown
    size = (crop, crop) if crop else (int(largest[0]), int(largest[1]))

    def needed(batch: int, checkpointing: bool) -> float:
        return training_bytes(
            choices.model, batch, size, choices.training.dtype != "float32", checkpointing
        )

    batch, checkpointing = (
        choices.training.batch_size if "batch_size" in choices.given else wanted,
        choices.training.activation_checkpointing,
    )
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
    memory = f"a step needs about {needed(batch, checkpointing) / GIB:.1f} GiB of {free / GIB:.1f}"
    choices.choose("batch_size", batch, f"{memory}; padded images of {size[0]} x {size[1]} px")
    if batch < wanted:
        choices.choose(
            "accumulate", -(-wanted // batch), f"so that a step sees {wanted} images all the same"
        )
    choices.choose(
        "activation_checkpointing", checkpointing, memory if checkpointing else "memory suffices"
    )
    cores = os.cpu_count() or 1
    workers = min(8, cores - 1) if choices.device.type == "cuda" else 0
    choices.choose(
        "workers",
        workers,
        f"{cores} cores beside the GPU"
        if workers
        else "the processor that trains prepares the images",
    )


def norms(choices: Choices) -> None:
    """Normalization and frozen stages, by what is started from."""
    model, batch, kind = choices.model, choices.training.batch_size, choices.kind
    few = choices.facts.images < FEW
    if kind == "none":
        norm = "batch" if batch >= 4 or model.trunk.timm else "group"
        why = f"from scratch; {batch} images at once " + (
            "are enough for BatchNorm" if batch >= 4 else "are too few for BatchNorm"
        )
        choices.choose("model.trunk.norm", norm, why)
        choices.choose("model.trunk.frozen_stages", 0, "from scratch: all is to be learnt")
        parts = {"neck": model.neck, "mask": model.mask, "keypoint": model.keypoint}
        for name in (
            name for name, part in parts.items() if part is not None and model.neck.kind == "fpn"
        ):
            choices.choose(
                f"model.{name}.norm",
                norm,
                "as the trunk (He et al. 2019: from scratch everything needs normalization)",
            )
    elif not model.trunk.timm:
        if kind == "trunk":
            choices.choose("model.trunk.norm", "frozen", "the pretrained statistics stay")
        stages = 2 if few else 1
        choices.choose(
            "model.trunk.frozen_stages",
            stages,
            f"{choices.facts.images:,} images: the first stages keep what they have learnt",
        )


def schedule(choices: Choices) -> None:
    """How long and how fast."""
    images, kind, training = choices.facts.images, choices.kind, choices.training
    start = {"none": "from scratch", "trunk": "from an ImageNet trunk"}.get(kind, "from a detector")
    fewest, most = EPOCHS[kind]
    epochs = float(np.clip(round(IMAGES_SEEN[kind] / images), fewest, most))
    if training.max_time is not None:
        choices.note(
            "max_time",
            "given; the number of steps follows from those of its first tenth, and is corrected on the way",
        )
        choices.choose(
            "evaluate_every",
            1e6,
            "once, at the end: within a fixed time every evaluation costs steps",
        )
    elif training.steps is not None:
        choices.note("steps", "as given")
    else:
        choices.choose("epochs", epochs, f"{start}: {images * epochs:,.0f} images seen")
        choices.choose(
            "evaluate_every",
            max(1.0, float(round(choices.training.epochs / 12))),
            "a dozen evaluations; the best model is kept",
        )
    choices.choose(
        "learning_rate",
        RATES[kind],
        f"{start}, {training.optimizer}, at {training.reference_batch} images a step",
    )
    long = (
        kind == "none" and training.max_time is None
    )  # a measured run has its length, and so its warm-up, only after a tenth of it
    choices.choose("warmup", 300 if long else 100, f"{start}; at most a tenth of the run")
