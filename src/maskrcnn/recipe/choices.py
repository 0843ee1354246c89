"""The choices of a recipe, each a function of what was measured and of the choices before it.

In: `Choices`: the statistics of a data set, the initial weights, a device, and the settings so far.
Out: the same with more settings chosen, and a reason for each.
"""

from __future__ import annotations

import bisect
import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config import ModelConfig, TrainConfig
from ..kernels.precision import computes_bfloat16
from ..preprocess import input_size
from ..runtime.counted import counted
from ..settings import override_config
from ..weights.heads import BOX_CONTEXT, LEAST_BOX_SHARE
from ..weights.pretrained import Kind
from .economy import FULL, Economy
from .fit_anchors import fit_anchors, mean_overlap
from .memory_estimate import (
    GIB,
    activation_bytes,
    cache_bytes,
    image_bytes,
    saving_bytes,
    state_bytes,
    step_work,
    validation_bytes,
)
from .statistics import Statistics

LITTLE = 2000  # images: below this, strong augmentation is worth more than it costs
# pixels that the median object should span in the model's input: ten cells of the finest level
OBJECT_SIDE = 40
LARGE_SIDE = 160  # px, beyond which a larger object carries no more information
LONGEST = (1024, 1333, 1600, 2048, 3072, 4096)  # longer sides of the input to try
LEAST_SIDE = 32  # px that the median object must keep where long sides are limited
CROPS = {"cpu": (256, 512), "cuda": (512, 1024)}  # px: smallest and largest side
FEWEST_FOR_BATCH_NORM = 3  # images per batch; the demo trains well with three
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


class MemoryLimitError(ValueError):
    """Training would need more memory than is free."""


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
    economy: Economy = FULL
    """What is given up for cheaper steps."""
    free: float = math.inf
    """Bytes of memory for training and validation, beyond those of the program."""
    validated: frozenset[tuple[int, int]] = frozenset()
    """(height, width) of the images to validate on; empty = they are like those to train on."""
    facts: Statistics = field(init=False)
    needed: float = field(init=False)
    """Bytes that training and validation need beyond those of the program."""

    @property
    def keeps_input(self) -> bool:
        """Whether resize rule and anchors stay: trained weights or a published model depend on
        them.
        """
        return self.kind == "detector" or self.model.input.resize == "torch"

    def choose(self, setting: str, value: Any, why: str) -> None:
        """Sets a value, unless the user gave the setting, a part of it or a group that contains
        it."""
        if self.is_given(setting):
            self.explain(setting, "given")
            return
        changed = self.changed(setting, value)
        self.model = changed.model
        self.training = changed.training
        self.explain(setting, why)

    def changed(self, setting: str, value: Any) -> Choices:
        """These choices with one value changed, also if the user gave it."""
        made = copy.copy(self)
        if setting.startswith("model."):
            made.model = override_config(self.model, {setting.removeprefix("model."): value})
        else:
            made.training = override_config(self.training, {setting: value})
        return made

    def is_given(self, setting: str) -> bool:
        """Whether the user gave the setting, a part of it or a group that contains it."""
        return any(
            name == setting or name.startswith(f"{setting}.") or setting.startswith(f"{name}.")
            for name in self.given
        )

    def explain(self, setting: str, why: str) -> None:
        """Records the current value of a setting with a reason."""
        value: Any = self.model if setting.startswith("model.") else self.training
        for name in setting.removeprefix("model.").split("."):
            value = getattr(value, name)
        self.reasons.append(Reason(setting, value, why))


def heads(choices: Choices) -> None:
    """Removes heads for what is not annotated."""
    facts = choices.facts
    from_boxes = facts.unmasked >= LEAST_BOX_SHARE
    if choices.model.mask is not None and not (facts.masks or facts.points or from_boxes):
        choices.choose("model.mask", None, "no object has a mask annotation")
    elif choices.model.mask is not None and choices.model.mask.context is None and from_boxes:
        why = (
            f"{facts.unmasked:.0%} of the objects have a box and no mask: boxes train masks, "
            "enlarged to show background. To leave masks out, set model.mask=none"
        )
        choices.choose("model.mask.context", BOX_CONTEXT, why)
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

    # Less detail shrinks whole images, unless the user decided how large they are.
    detail = 1.0
    if choices.model.input.min_size is None:
        if not choices.is_given("model.input.scale"):
            detail = choices.economy.detail
        less = f"; times {detail:g} for cheaper steps" if detail < 1 else ""
        choices.choose("model.input.scale", round(scale * detail, 3), why + less)

    start = LONGEST.index(1333 if choices.device.type == "cuda" else 1024)
    longest, span = 0, 0.0
    for limit in LONGEST[start:]:
        larger = round(limit * detail / 32) * 32 if detail < 1 else limit
        limited = replace(choices.model, input=replace(choices.model.input, max_size=larger))
        if longest and not _validation_fits(choices, limited):
            break
        longest = larger
        span = float(np.median(np.sqrt(_objects(limited, choices.facts).prod(axis=1))))
        if span >= min(LEAST_SIDE, 0.8 * median * scale) * detail:
            break
    choices.choose(
        "model.input.max_size",
        longest,
        f"limit of the longer side; the median object then spans {span:.0f} px",
    )


def width(choices: Choices) -> None:
    """Narrows the trunk of the small network, if it starts from random weights."""
    trunk = choices.model.trunk
    factor = choices.economy.channels
    if factor == 1 or choices.kind != "none" or trunk.depth != 18 or trunk.timm:
        return
    why = f"times {factor:g} for cheaper steps"
    for name in ("stem_channels", "res2_channels"):
        choices.choose(f"model.trunk.{name}", round(getattr(trunk, name) * factor), why)


def _validation_fits(choices: Choices, model: ModelConfig) -> bool:
    """Whether whole images, which validation looks at, fit into the memory one by one."""
    if math.isinf(choices.free):
        return True
    return _validation_bytes(choices, model) <= MEMORY_SHARE * choices.free


def _validation_bytes(choices: Choices, model: ModelConfig) -> float:
    """Bytes of the prediction for the largest image to validate on.

    Validation looks at whole images, one by one if they are large.
    """
    sizes = choices.validated or {(int(h), int(w)) for h, w in choices.facts.sizes}
    inputs = [input_size(height, width, model.input) for height, width in sizes]
    height = max(height for height, _ in inputs)
    width = max(width for _, width in inputs)
    return validation_bytes(model, (height, width))


def _input_sizes(model: ModelConfig, facts: Statistics) -> np.ndarray:
    """[n, 2] (height, width) of the images in the model's input."""
    different, rows = np.unique(facts.sizes, axis=0, return_inverse=True)
    inputs = [input_size(int(height), int(width), model.input) for height, width in different]
    return np.array(inputs)[rows.ravel()]


def _objects(model: ModelConfig, facts: Statistics) -> np.ndarray:
    """[N, 2] (width, height) of the objects in the model's input."""
    factors = _input_sizes(model, facts) / facts.sizes
    return facts.sides * factors[facts.image][:, ::-1]


def augment(choices: Choices) -> None:
    """Chooses the augmentation: the fewer images, the stronger."""
    little = choices.facts.images < LITTLE
    count = counted(choices.facts.images, "image")
    _crop(choices)
    choices.choose(
        "augment.scale",
        (0.5, 1.25) if little else (0.8, 1.25),
        f"{count}: {'large' if little else 'moderate'}-scale jitter",
    )
    _orientation(choices)
    _colors(choices, count)
    if little and (choices.facts.masks or choices.facts.unmasked):
        _copy_paste(choices, count)
    _repeats(choices)


def _crop(choices: Choices) -> None:
    """A crop twice as large as large objects, within what the device trains quickly."""
    facts = choices.facts
    sizes = _input_sizes(choices.model, facts)
    large = np.quantile(_objects(choices.model, facts).max(axis=1), 0.95)
    detail = choices.economy.detail
    least, most = (
        math.ceil(detail * side / 64) * 64 for side in CROPS.get(choices.device.type, CROPS["cuda"])
    )
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
        f"up to {counted(most, 'object')} per image, plus a quarter",
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


def fit(choices: Choices) -> None:
    """Chooses a precision that the device computes fast, and a batch that fits the memory.

    Raises:
        MemoryLimitError: a step or a validation needs more memory than is free.
    """
    half = computes_bfloat16(choices.device)
    choices.choose(
        "dtype",
        "bfloat16" if half else "float32",
        f"this {choices.device.type} device supports it"
        if half
        else "bfloat16 would be emulated here",
    )
    most = round((8 if choices.device.type == "cuda" else 4) * choices.economy.images)
    wanted = min(most, choices.facts.images)
    limit = MEMORY_SHARE * choices.free

    # Checkpointing comes before smaller batches: it does not change the gradients.
    batch = choices.training.batch_size if choices.is_given("batch_size") else wanted
    checkpointing = choices.training.activation_checkpointing
    may_checkpoint = not (choices.model.trunk.timm or choices.is_given("activation_checkpointing"))
    if may_checkpoint and _needed(choices, batch, checkpointing) > limit:
        checkpointing = True
    while (
        batch > 1
        and not choices.is_given("batch_size")
        and _needed(choices, batch, checkpointing) > limit
    ):
        batch //= 2
    choices.needed = _needed(choices, batch, checkpointing)
    if choices.needed > choices.free:
        raise MemoryLimitError(_too_large(choices, batch, checkpointing))

    memory = f"training needs about {choices.needed / GIB:.1f} of {choices.free / GIB:.1f} GiB"
    height, width = _training_size(choices)
    choices.choose("batch_size", batch, f"{memory}; padded images of {height} x {width} px")
    if batch < wanted:
        why = f"batches of {batch}, so {counted(wanted, 'image')} per step"
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


def work(choices: Choices) -> float:
    """Arithmetic of an optimizer step."""
    training = choices.training
    size = _training_size(choices)
    return training.accumulate * step_work(choices.model, training.batch_size, size)


def _training_size(choices: Choices) -> tuple[int, int]:
    """(height, width) of the padded images of a large batch."""
    largest_scale = choices.training.augment.scale[1]
    largest = np.quantile(_input_sizes(choices.model, choices.facts), 0.95, axis=0) * largest_scale
    crop = choices.training.augment.crop or math.inf
    return int(min(largest[0], crop)), int(min(largest[1], crop))


def _needed(choices: Choices, batch: int, checkpointing: bool) -> float:
    """Bytes that training and validation need beyond those of the program."""
    model = choices.model
    half = choices.training.dtype != "float32"
    step = activation_bytes(model, batch, _training_size(choices), half, checkpointing)

    validation = _validation_bytes(choices, model)
    needed = state_bytes(model) + max(step, validation, saving_bytes(model))
    if choices.device.type == "cuda":
        return needed
    pixels = choices.facts.sizes.prod(axis=1)
    cached = cache_bytes(float(pixels.mean()), choices.facts.images)
    validated = max((height * width for height, width in choices.validated), default=0)
    original = max(image_bytes(int(pixels.max()), images=2), image_bytes(validated, images=1))
    return needed + original + cached


def _too_large(choices: Choices, batch: int, checkpointing: bool) -> str:
    """What needs too much memory, and the largest value that fits, where a given value decides."""
    text = (
        f"a step needs about {choices.needed / GIB:.3g} GiB, "
        f"{choices.free / GIB:.3g} GiB of memory are free"
    )
    advice: list[str] = []
    given = [setting for setting in _LIMITED if choices.is_given(setting)]
    for setting in given:
        value: Any = choices.model if setting.startswith("model.") else choices.training
        for name in setting.removeprefix("model.").split("."):
            value = getattr(value, name)
        if value is None:
            continue

        def needs(candidate: float, setting: str = setting) -> float:
            changed = choices.changed(setting, candidate)
            images = int(candidate) if setting == "batch_size" else batch
            return _needed(changed, images, checkpointing)

        values = _LIMITED[setting](value)
        fitting = largest_that(lambda v: needs(v) <= choices.free, values)
        if fitting is not None:
            advice.append(f"{setting}={fitting:g} (got {value:g})")
    if advice:
        return f"{text}. The largest that fits: {' or '.join(advice)}"
    if given:
        return f"{text}. Lower {' and '.join(given)}, or use a smaller network (--model)"
    return (
        f"{text}, even with one image per step. Use a smaller model.input.scale, "
        "a smaller network (--model), or more memory (--memory)"
    )


# Given settings that decide the memory, with the values below a given one to try.
_LIMITED: dict[str, Callable[[Any], Sequence[float]]] = {
    "batch_size": lambda value: range(1, value),
    "augment.crop": lambda value: range(32, value, 32),
    "model.input.scale": lambda value: [value * share / 100 for share in range(1, 100)],
    "model.input.min_size": lambda value: range(32, value, 32),
    "model.input.max_size": lambda value: range(32, value, 32),
}


def largest_that(fits: Callable[[float], bool], values: Sequence[float]) -> float | None:
    """The largest of increasing values that fits, by bisection; None if none does.

    Example:
        >>> from maskrcnn.recipe.choices import largest_that
        >>> largest_that(lambda value: value < 7, range(1, 100))
        6
    """
    count = bisect.bisect_left(values, True, key=lambda value: not fits(value))
    return values[count - 1] if count else None


def norms(choices: Choices) -> None:
    """Chooses normalization and frozen stages by the initial weights."""
    model = choices.model
    kind = choices.kind
    if kind == "none":
        batch = choices.training.batch_size
        is_enough = batch >= FEWEST_FOR_BATCH_NORM
        norm = "batch" if is_enough or model.trunk.timm else "group"
        enough = "enough" if is_enough else "too few"
        why = f"random weights; {counted(batch, 'image')} per batch: {enough} for BatchNorm"
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
        why = f"{counted(images, 'image')}: the first stages keep their pretrained weights"
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
            "given, for the whole run; its first tenth decides the number of steps",
        )
        choices.choose(
            "evaluate_every",
            1e6,
            "only at the end: within a fixed time, evaluations cost steps",
        )
    elif training.steps is not None:
        choices.explain("steps", "given")
    else:
        choices.choose(
            "epochs", epochs, f"{start}: {counted(round(images * epochs), 'training image')} in all"
        )
        choices.choose(
            "evaluate_every",
            max(1.0, float(round(choices.training.epochs / 12))),
            "about 12 evaluations; the best model is kept",
        )
    choices.choose(
        "learning_rate",
        RATES[kind],
        f"{start}, {training.optimizer}, at {counted(training.reference_batch, 'image')} per step",
    )

    # With `max_time` the number of steps, and so a tenth of it, is known only after a tenth.
    long = kind == "none" and training.max_time is None
    choices.choose("warmup", 300 if long else 100, f"{start}; at most a tenth of the run")
