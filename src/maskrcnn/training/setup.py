"""Before the first step: what cannot work is refused, the network is made, the run is announced.

In: what `train` was given. Out: a network, the number of steps, a line for the reader.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..config import ModelConfig, TrainConfig
from ..model.resnet import ResNet
from .optim import images_per_step, scaled_rate
from .processes import Processes

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..model.maskrcnn import MaskRCNN
    from ..weights.pretrained import Start


def check_settings(
    config: TrainConfig, data: CocoDataset, unlabeled: CocoDataset | None = None
) -> None:
    """Refuses settings that cannot work, all at once."""
    whole, positive = (
        ("batch_size", "accumulate", "reference_batch"),
        ("epochs", "steps", "max_time", "learning_rate", "evaluate_every"),
    )
    wrong = [
        f"{name} is {value}, must be at least 1"
        for name in whole
        if (value := getattr(config, name)) < 1
    ]
    wrong += [
        f"{name} is {value}, must be above 0"
        for name in positive
        if (value := getattr(config, name)) is not None and value <= 0
    ]
    wrong += [] if 0 <= config.ema < 1 else [f"ema is {config.ema}, must be at least 0 and below 1"]
    wrong += (
        []
        if 0 <= config.repeat_threshold <= 1
        else [f"repeat_threshold is {config.repeat_threshold}, must be from 0 to 1"]
    )
    chances = {
        name: getattr(config.augment, name)
        for name in ("flip_horizontal", "flip_vertical", "copy_paste")
    }
    wrong += [
        f"augment.{name} is {value}, must be from 0 to 1"
        for name, value in chances.items()
        if not 0 <= value <= 1
    ]
    wrong += [] if len(data) else ["the data set has no images"]
    wrong += _wrong_for_unlabeled(config) if unlabeled is not None else []
    if wrong:
        raise ValueError("training cannot start: " + "; ".join(wrong))


def _wrong_for_unlabeled(config: TrainConfig) -> list[str]:
    own = config.unlabeled
    wrong = (
        []
        if config.ema
        else [
            "ema is 0, must be above 0 with unlabeled images: the averaged model is their teacher"
        ]
    )
    wrong += [
        f"unlabeled.{name} is {value}, must be above 0"
        for name in ("ratio", "weight")
        if (value := getattr(own, name)) <= 0
    ]
    parts = (
        "burn_in",
        "ramp",
        "threshold",
        "ignore_threshold",
        "mask_threshold",
        "keypoint_threshold",
    )
    wrong += [
        f"unlabeled.{name} is {value}, must be from 0 to 1"
        for name in parts
        if not 0 <= (value := getattr(own, name)) <= 1
    ]
    return wrong + (
        [
            f"unlabeled.ignore_threshold is {own.ignore_threshold}, must not be above threshold, {own.threshold}"
        ]
        if own.ignore_threshold > own.threshold
        else []
    )


def make_network(
    model: ModelConfig | MaskRCNN,
    data: CocoDataset,
    validation: CocoDataset | None,
    config: TrainConfig,
    pretrained: str | Path | None,
) -> Start:
    """A network of its own, with the categories of the data and the intensity range fitted on it, and where its weights come from."""
    from ..weights.pretrained import Start, start

    description = model if isinstance(model, ModelConfig) else model.config
    wanted = [c.name for c in description.categories]
    for name, part in (("training", data), ("validation", validation)):
        if part is not None and (got := [c.name for c in part.categories]) != wanted:
            raise ValueError(
                f"the {name} data has the categories {', '.join(got)}, the model {', '.join(wanted)}. Make the model with those of the data "
                "(data.categories), and open all data with the same ones (CocoDataset(.., categories=..))"
            )
    if (
        description.input.intensity_range is None
        and (intensities := data.intensity_range()) is not None
    ):
        description = replace(
            description, input=replace(description.input, intensity_range=intensities)
        )
    torch.manual_seed(config.seed)
    if isinstance(model, ModelConfig):
        made = start(description, pretrained)
    elif pretrained is None:
        made = Start(copy.deepcopy(model), "given", "a network")
    else:
        raise ValueError(
            f"pretrained={pretrained} and a network with weights of its own: which are meant? Give the network's configuration instead"
        )
    made.network.config = description
    if config.activation_checkpointing:
        checkpoint_activations(made.network)
    return made


def checkpoint_activations(network: MaskRCNN) -> None:
    """From now on training keeps only what the trunk's stages give, and computes their inside again on the way back.

    Raises:
        ValueError: a timm trunk.
    """
    if not isinstance(network.trunk, ResNet):
        raise ValueError(
            f'activation_checkpointing needs the ResNet trunk, got trunk.timm = "{network.config.trunk.timm}"; '
            "set activation_checkpointing=false, and a smaller batch_size with more accumulate where memory is short"
        )
    network.trunk.activation_checkpointing = True


def run_length(config: TrainConfig, num_images: int, images: int) -> int | None:
    """Steps of a run of `images` images each; None where `max_time` decides later."""
    if config.max_time is not None:
        return None
    return config.steps or math.ceil(config.epochs * num_images / images)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator at a step."""
    return int(
        np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def first_line(
    total: int | None, data: CocoDataset, config: TrainConfig, processes: Processes, out: Path
) -> str:
    """What is going to happen."""
    names, images, threads = (
        [c.name for c in data.categories],
        images_per_step(config, processes.world),
        torch.get_num_threads(),
    )
    shown = ", ".join(names[:5]) + (", .." if len(names) > 5 else "")
    length = (
        f"{total} steps ({total * images / len(data):.3g} epochs)"
        if total
        else duration(config.max_time or 0)
    )
    rate = f"{scaled_rate(config, processes.world):.3g} ({config.learning_rate:g} at {config.reference_batch} images)"
    machine = f"{processes.device}, {f'{processes.world} processes, ' if processes.world > 1 else ''}{threads} thread{'s' * (threads != 1)}"
    return (
        f"{len(data)} images, {len(names)} categor{'y' if len(names) == 1 else 'ies'} ({shown}); {length}, {images} images a step; "
        f"{config.optimizer}, learning rate {rate}; {machine}, {config.precision}; {out}"
    )


def duration(seconds: float) -> str:
    """Seconds for people: 12.3 s, 4.5 min."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
