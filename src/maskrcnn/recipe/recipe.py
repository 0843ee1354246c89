"""Settings chosen from the data and the machine: `print(choose_recipe(data))`.

In: a data set, and what shall be started from. Out: a `Recipe`: a model's and a training's configuration, and for every choice its reason.

A setting that the user gives is never chosen, and what depends on it follows it. What is not chosen keeps the preset's and `TrainConfig`'s values.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from .. import presets
from ..annotations.coco_dataset import CocoDataset
from ..config import ModelConfig, TrainConfig
from ..settings import override_config
from ..weights.pretrained import Kind, config_of, kind_of
from . import choices as choose
from .choices import Choices, Reason
from .memory_estimate import GIB, available_memory
from .statistics import statistics_of


@dataclass(frozen=True)
class Recipe:
    """What to train and how, and why. `print` shows it as a table."""

    model: ModelConfig
    training: TrainConfig
    reasons: tuple[Reason, ...]
    pretrained: str | Path | None = None
    """For `train(recipe.model, data, config=recipe.training, pretrained=recipe.pretrained)`."""

    def __str__(self) -> str:
        rows = [(setting, _shown(value), why) for setting, value, why in self.reasons]
        first, second = (max(len(row[i]) for row in rows) + 2 for i in (0, 1))
        second, width = (
            min(second, 42),
            max(100, min(160, shutil.get_terminal_size((140, 24)).columns)),
        )
        lines = []
        for setting, value, why in rows:
            values, whys = (
                textwrap.wrap(text, w) or [""]
                for text, w in ((value, second - 2), (why, width - first - second))
            )
            for i in range(max(len(values), len(whys))):
                cells = (
                    setting if i == 0 else "",
                    *(part[i] if i < len(part) else "" for part in (values, whys)),
                )
                lines.append(f"{cells[0]:<{first}}{cells[1]:<{second}}{cells[2]}".rstrip())
        return "\n".join(lines)


def choose_recipe(
    data: CocoDataset,
    *,
    model: str | ModelConfig = "auto",
    pretrained: str | Path | None = None,
    max_time: float | None = None,
    memory: float | None = None,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """A model's and a training's configuration for these images on this machine, with reasons.

    Args:
        data: the images to learn from; some are looked at.
        model: "auto", the name of a preset, or a configuration to fit to the data. "auto" is the architecture of a
            pretrained detector, where there is one.
        pretrained: what will be started from, as for `train`; None = random weights.
        max_time: seconds that training may take, instead of a number of epochs.
        memory: GiB that training may take; by default what is free on the device.
        device: such as "cpu" or "cuda"; a GPU where there is one by default.
        settings: values to keep, by dotted name: fields of TrainConfig ("batch_size", "augment.crop") and, with "model.", of ModelConfig.

    Raises:
        ValueError: an unknown preset, setting or pretrained source; a value of the wrong type.
        DataError: no object to choose from.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    given = {**(settings or {}), **({} if max_time is None else {"max_time": max_time})}
    choices = _begin(data, model, pretrained, kind_of(pretrained), place, given)
    choices.facts = statistics_of(data)
    choose.heads(choices)
    choose.scale(choices)
    choose.augment(choices)
    choose.crowd(choices)
    choose.anchors(choices)
    choose.fit(choices, available_memory(place) if memory is None else memory * GIB)
    choose.norms(choices)
    choose.schedule(choices)
    return Recipe(choices.model, choices.training, tuple(choices.reasons), pretrained)


def _begin(
    data: CocoDataset,
    model: str | ModelConfig,
    pretrained: str | Path | None,
    kind: Kind,
    device: torch.device,
    settings: dict[str, Any],
) -> Choices:
    """The architecture, with all that the user gave."""
    name, why = (model, "as given") if isinstance(model, str) else ("configuration", "as given")
    if kind == "detector" and pretrained is not None and model == "auto":
        config, name, why = (
            config_of(pretrained, data.categories),
            str(pretrained),
            "the pretrained detector's, with heads for these categories",
        )
    elif isinstance(model, ModelConfig):
        config = model
    else:
        if name == "auto":
            name, why = _architecture(len(data), pretrained, kind, device)
        if name not in get_args(presets.Preset):
            raise ValueError(
                f'model: got "{name}", must be "auto" or one of {", ".join(get_args(presets.Preset))}'
            )
        config = getattr(presets, name)(data.categories)
    if (fitted := data.intensity_range()) is not None:
        config = replace(config, input=replace(config.input, intensity_range=fitted))
    own = {
        setting.removeprefix("model."): value
        for setting, value in settings.items()
        if setting.startswith("model.")
    }
    training = override_config(
        TrainConfig(),
        {setting: value for setting, value in settings.items() if not setting.startswith("model.")},
    )
    choices = Choices(
        kind, device, frozenset(settings), override_config(config, own, "model."), training
    )
    choices.reasons.append(Reason("model", name, why))
    said = {
        "none": "random weights, unless another start is named",
        "trunk": "an ImageNet trunk; all else begins anew",
    }
    choices.reasons.append(
        Reason(
            "pretrained",
            pretrained or "none",
            said.get(kind, "a detector; what fits its weights is kept"),
        )
    )
    return choices


def _architecture(
    images: int, pretrained: str | Path | None, kind: Kind, device: torch.device
) -> tuple[str, str]:
    """The preset's name and why it."""
    if kind == "trunk":
        source = str(pretrained).lower()
        fitting = next(
            (
                preset
                for depth, preset in (("18", "r18_small"), ("101", "r101_fpn"))
                if f"resnet{depth}" in source
            ),
            "r50_fpn",
        )
        return f"maskrcnn_{fitting}", "it has the pretrained trunk"
    if device.type == "cuda" and images >= choose.LITTLE:
        return "maskrcnn_r50_fpn", f"a GPU and {images:,} images"
    return "maskrcnn_r18_small", "a small network: " + (
        "a CPU trains" if device.type != "cuda" else f"{images:,} images from scratch"
    )


def _shown(value: Any) -> str:
    """A value as a reader wants it."""
    if isinstance(value, tuple):
        return f"({', '.join(_shown(v[0] if isinstance(v, tuple) and len(v) == 1 else v) for v in value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)
