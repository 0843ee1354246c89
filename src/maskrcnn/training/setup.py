"""Before the first step: checks settings, builds the network, describes the run.

In: the arguments of `train`. Out: a network, the number of steps, a line that describes the run.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..config import ModelConfig, TrainConfig
from ..model.resnet import ResNet
from ..runtime.counted import counted
from ..setting_ranges import all_out_of_range
from .optim import images_per_step, scaled_rate
from .processes import Processes

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..model.maskrcnn import MaskRCNN
    from ..weights.pretrained import Start


def check_settings(
    config: TrainConfig, data: CocoDataset, unlabeled: CocoDataset | None = None
) -> None:
    """Raises an error that lists all settings that are out of range.

    Raises:
        ValueError: a setting is out of range, or the data set has no images.
    """
    wrong = all_out_of_range(config)
    if not len(data):
        wrong.append("the data set has no images")
    elif not any(data.labels(index) for index in range(len(data))):
        wrong.append(
            f"{data.name}: no object to learn; annotate at least one, and check that iscrowd and "
            "ignore are 0 for objects"
        )
    if unlabeled is not None:
        wrong += _wrong_for_unlabeled(config)
    if wrong:
        raise ValueError("training cannot start: " + "; ".join(wrong))


def _wrong_for_unlabeled(config: TrainConfig) -> list[str]:
    own = config.unlabeled
    wrong: list[str] = []
    if not config.ema:
        wrong.append(
            "ema: expected more than 0 with unlabeled images, got 0; the averaged model labels them"
        )

    if own.ignore_threshold > own.threshold:
        wrong.append(
            f"unlabeled.ignore_threshold: expected at most unlabeled.threshold ({own.threshold}), "
            f"got {own.ignore_threshold}"
        )
    return wrong


def make_network(
    model: ModelConfig | MaskRCNN,
    data: CocoDataset,
    val: CocoDataset | None,
    config: TrainConfig,
    pretrained: str | Path | None,
) -> Start:
    """A new network and where its weights come from.

    A model that is given is copied. The intensity range of its input, and the factor by which boxes
    are enlarged for its mask head, are fitted to the data where it has none.

    Raises:
        ValueError: the categories of the data are not the model's; both a model and `pretrained`
            are given.
    """
    from ..weights.heads import parts_of, with_fitted_context
    from ..weights.pretrained import Start, start

    description = model if isinstance(model, ModelConfig) else model.config
    wanted = [c.name for c in description.categories]
    for name, part in (("training", data), ("validation", val)):
        if part is not None and (got := [c.name for c in part.categories]) != wanted:
            raise ValueError(
                f"the {name} data has the categories {', '.join(got)}, "
                f"the model {', '.join(wanted)}. "
                "Make the model with data.categories, and open all data with the same ones "
                "(CocoDataset(..., categories=...))"
            )
        if part is not None and description.keypoint is not None:
            _refuse_other_keypoints(description, part, name)

    if description.input.intensity_range is None:
        intensities = data.intensity_range()
        if intensities is not None:
            fitted = replace(description.input, intensity_range=intensities)
            description = replace(description, input=fitted)
    description = with_fitted_context(description, parts_of(data))

    torch.manual_seed(config.seed)
    if isinstance(model, ModelConfig):
        made = start(description, pretrained)
    elif pretrained is None:
        made = Start(copy.deepcopy(model), "given", "a network")
    else:
        raise ValueError(
            f"got both a model with its own weights and pretrained={pretrained}; "
            "omit pretrained, or pass the model's configuration (model.config)"
        )

    mask = description.mask
    if mask is not None and mask.from_boxes.teacher_weight and not config.ema:
        raise ValueError(
            "ema: expected more than 0 with model.mask.from_boxes.teacher_weight above 0, got 0; "
            "the averaged model is the teacher"
        )
    made.network.config = description
    if made.network.mask_head is not None and mask is not None:
        made.network.mask_head.config = mask
    if config.activation_checkpointing:
        checkpoint_activations(made.network)
    return made


def _refuse_other_keypoints(model: ModelConfig, data: CocoDataset, name: str) -> None:
    """Raises an error where the data's keypoints are others than the model's, or in another order.

    A model may number its keypoints instead of naming them; then their count must agree.
    """
    for ours, theirs in zip(model.categories, data.categories, strict=True):
        numbered = all(re.fullmatch(r"(keypoint )?\d+", keypoint) for keypoint in ours.keypoints)
        same_count = len(ours.keypoints) == len(theirs.keypoints)
        if not theirs.keypoints or ours.keypoints == theirs.keypoints or (numbered and same_count):
            continue
        raise ValueError(
            f'category "{ours.name}": the {name} data has the keypoints '
            f"{', '.join(theirs.keypoints)}, the model {', '.join(ours.keypoints) or 'none'}. "
            "Open the data with the model's categories (CocoDataset(..., "
            "categories=model.config.categories)), or make the model with data.categories"
        )


def warn_about_heads(model: ModelConfig, data: CocoDataset, config: TrainConfig) -> None:
    """Warns about annotations that do not train a head, and heads without annotations."""
    from ..weights.heads import head_problems, learns_from_boxes, parts_of

    parts = parts_of(data)
    problems = head_problems(model, parts, data.name)
    if config.augment.rotation and learns_from_boxes(model) and parts.unmasked:
        problems.append(
            f"augment.rotation: {parts.box_masks}, and boxes of rotated images do not fit: they do "
            "not train masks. Set augment.rotation=0; augment.right_angles=true is possible"
        )
    for problem in problems:
        warnings.warn(problem, stacklevel=5)


def checkpoint_activations(network: MaskRCNN) -> None:
    """From now on training keeps only the outputs of the trunk's stages and recomputes the rest for
    the gradients.

    Raises:
        ValueError: a timm trunk.
    """
    if not isinstance(network.trunk, ResNet):
        raise ValueError(
            "activation_checkpointing needs the ResNet trunk, "
            f'got trunk.timm = "{network.config.trunk.timm}"; set activation_checkpointing=false. '
            "To save memory, use a smaller batch_size and more accumulate"
        )
    network.trunk.activation_checkpointing = True


def number_of_steps(config: TrainConfig, num_images: int, images_per_step: int) -> int | None:
    """Steps of the run; None in a run with `max_time`, where it is decided later."""
    if config.max_time is not None:
        return None
    return config.steps or math.ceil(config.epochs * num_images / images_per_step)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator at a step."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def first_line(
    total: int | None, data: CocoDataset, config: TrainConfig, processes: Processes, out: Path
) -> str:
    """The run in one line: data, length, batch, learning rate, machine, folder."""
    names = [c.name for c in data.categories]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    categories = f"{counted(len(names), 'category')} ({shown})"

    images = images_per_step(config, processes.world)
    length = duration(config.max_time or 0)
    if total:
        length = f"{counted(total, 'step')} ({counted(total * images / len(data), 'epoch')})"

    rate = f"{scaled_rate(config, processes.world):.3g}"
    reference = f"{config.learning_rate:g} at {counted(config.reference_batch, 'image')}"

    threads = torch.get_num_threads()
    machine = [str(processes.device)]
    if processes.world > 1:
        machine.append(counted(processes.world, "process"))
    machine += [counted(threads, "thread"), config.dtype]
    return (
        f"{counted(len(data), 'image')}, {categories}; {length}, "
        f"{counted(images, 'image')} per step; "
        f"{config.optimizer}, learning rate {rate} ({reference}); {', '.join(machine)}; {out}"
    )


def duration(seconds: float) -> str:
    """Seconds in readable form: 12.3 s, 4.5 min."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
