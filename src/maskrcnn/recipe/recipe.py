"""Settings chosen from the data and the machine: `print(choose_recipe(data))`.

In: a data set and the initial weights. Out: a `Recipe`: the configurations of a model and its
training, and the reason for each choice.

A setting that the user gives is kept, and the choices that depend on it follow it. Settings that
are not chosen keep the values of the preset and of `TrainConfig`.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import torch

from .. import presets
from ..annotations.coco_dataset import CocoDataset, require_datasets
from ..config import ModelConfig, TrainConfig
from ..ops.device import usable_device
from ..runtime.counted import counted
from ..settings import override_config
from ..weights.detector_at_hand import detector_at_hand
from ..weights.heads import Head
from ..weights.pretrained import Kind, config_for, kind_of
from ..weights.trunk_weights import PREFERRED, TrunkWeights, at_hand, with_trunk
from . import choices as choose
from .choices import Choices, MemoryLimitError, Reason
from .economy import ENOUGH, ladder
from .memory_estimate import free_bytes
from .statistics import Statistics, statistics_of

AUTO = "auto"  # weights to start from: those at hand, where they suit the data
SMALL = ("maskrcnn_r18_small",)  # presets whose trunk a small ImageNet trunk can replace
NEW_HEAD = "annotated, and the pretrained model has no such head: it starts from random weights"


@dataclass(frozen=True)
class Recipe:
    """Configurations of a model and its training, with reasons. `print` shows a table."""

    model: ModelConfig
    training: TrainConfig
    reasons: tuple[Reason, ...]
    pretrained: str | Path | None = None
    """For `train(recipe.model, data, config=recipe.training, pretrained=recipe.pretrained)`."""
    memory: float | None = None
    """Bytes that training and validation need beyond those of the program; None = not estimated."""

    def __str__(self) -> str:
        rows = [(setting, _shown(value), why) for setting, value, why in self.reasons]
        first = max(len(setting) for setting, _, _ in rows) + 2
        second = min(max(len(value) for _, value, _ in rows) + 2, 42)
        width = max(100, min(160, shutil.get_terminal_size((140, 24)).columns))

        lines = []
        for setting, value, why in rows:
            values = textwrap.wrap(value, second - 2)
            reasons = textwrap.wrap(why, width - first - second)
            for cells in zip_longest([setting], values, reasons, fillvalue=""):
                lines.append(f"{cells[0]:<{first}}{cells[1]:<{second}}{cells[2]}".rstrip())
        return "\n".join(lines)


@dataclass(frozen=True)
class Candidate:
    """One way to train: a recipe, and how many of its steps give a good result."""

    name: str
    """For the user."""
    recipe: Recipe
    enough: int
    """Optimizer steps that give a good result."""
    work: float
    """Arithmetic of one step, in any unit that the candidates share."""
    kind: Kind = "none"
    """The kind of the initial weights."""


def choose_recipe(
    data: CocoDataset,
    *,
    val: CocoDataset | None = None,
    model: str | ModelConfig = "auto",
    pretrained: str | Path | None = None,
    max_time: float | None = None,
    memory: float | None = None,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """Chooses the configurations of a model and its training for these images and this machine.

    Args:
        data: annotated training images. Reads the annotations of at most
            5,000 of them and decodes at most 48.
        val: images to validate on, whose sizes count for the memory; None = like `data`.
        model: "auto", the name of a preset, or a configuration to fit to the data. "auto" uses the
            architecture of a pretrained detector, or else one that suits the data and the machine.
        pretrained: initial weights, as for `train`; None or "none" = random weights; "auto" = an
            ImageNet trunk that is on this machine, or else random.
            With a time budget, "auto" prefers a detector that is on this machine.
        max_time: seconds that training may take, instead of a number of epochs. Only
            `plan_training` measures how many steps fit, and may choose cheaper ones.
        memory: memory limit of the process in GiB, or of the GPU; None = all that is free.
        device: such as "cpu" or "cuda"; None = a GPU if there is one.
        settings: values to keep, by dotted name: fields of TrainConfig ("batch_size",
            "augment.crop") and, with "model.", of ModelConfig.

    Returns:
        The configurations, with the reason for each choice.

    Raises:
        ValueError: an unknown preset, setting or pretrained source; a value of the wrong type.
        DataError: no object to choose from.
        MemoryLimitError: a ValueError; a step needs more memory than is free.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> data = mr.load_dataset(write_scenes("scenes", 4, size=64))
        >>> recipe = mr.choose_recipe(data, memory=4, device="cpu", settings={"batch_size": 2})
        >>> recipe.training.batch_size, recipe.model.trunk.norm
        (2, 'group')
        >>> next(reason.why for reason in recipe.reasons if reason.setting == "batch_size")
        'given'
    """
    return recipe_candidates(
        data,
        val=val,
        model=model,
        pretrained=pretrained,
        max_time=max_time,
        memory=memory,
        device=device,
        settings=settings,
    )[0].recipe


def recipe_candidates(
    data: CocoDataset,
    *,
    val: CocoDataset | None = None,
    model: str | ModelConfig = "auto",
    pretrained: str | Path | None = None,
    max_time: float | None = None,
    memory: float | None = None,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """Recipes that fit the memory, the best result first; later ones have cheaper steps.

    With a time budget there is one for each economy of the ladder (economy.py), and weights on
    this machine come before random ones. Without one, the first that fits is the only one.

    See `choose_recipe` for the arguments.

    Raises:
        MemoryLimitError: no recipe fits the memory.
    """
    require_datasets(data=data, val=val)
    chosen_device = usable_device(device)
    given = dict(settings or {})
    if max_time is not None:
        given["max_time"] = max_time
    is_timed = given.get("max_time") is not None

    facts = None
    sources: list[tuple[str | Path | None, str]] = [(pretrained, "")]
    if str(pretrained).lower() == AUTO:
        facts = statistics_of(data)
        sources = _starts_at_hand(data, facts, model, given, chosen_device)
    starts = [_begin(data, model, source, why, chosen_device, given) for source, why in sources]
    validated = frozenset(val.size(i) for i in range(len(val))) if val else frozenset()
    free = free_bytes(chosen_device, memory)
    facts = facts or statistics_of(data)

    candidates: dict[tuple[ModelConfig, TrainConfig, str | Path | None], Candidate] = {}
    refused: MemoryLimitError | None = None
    for (source, _), start in zip(sources, starts, strict=True):
        for economy in ladder(start.kind):
            choices = replace(start, reasons=list(start.reasons), economy=economy, free=free)
            choices.facts = facts
            choices.validated = validated
            try:
                candidate = _candidate(choices, source)
            except MemoryLimitError as error:
                refused = refused or error
                continue
            key = (candidate.recipe.model, candidate.recipe.training, source)
            candidates.setdefault(key, candidate)
            if not is_timed:
                break
    if not candidates and refused is not None:
        raise refused
    return list(candidates.values())


def _candidate(choices: Choices, pretrained: str | Path | None) -> Candidate:
    """All choices after the architecture."""
    choose.heads(choices)
    choose.width(choices)
    choose.scale(choices)
    choose.augment(choices)
    choose.crowd(choices)
    choose.anchors(choices)
    choose.fit(choices)
    choose.norms(choices)
    choose.schedule(choices)

    reasons = tuple(choices.reasons)
    recipe = Recipe(choices.model, choices.training, reasons, pretrained, choices.needed)
    start = "random weights" if choices.kind == "none" else str(pretrained)
    return Candidate(
        f"{start}, {choices.economy}",
        recipe,
        round(ENOUGH[choices.kind] * choices.economy.enough),
        choose.work(choices),
        choices.kind,
    )


def _begin(
    data: CocoDataset,
    model: str | ModelConfig,
    pretrained: str | Path | None,
    why_pretrained: str,
    device: torch.device,
    settings: dict[str, Any],
) -> Choices:
    """The architecture, with the settings that the user gave."""
    why = "given"
    timm = str(settings.get("model.trunk.timm", ""))
    kind = kind_of(pretrained, timm)
    trunk = None
    if kind == "trunk" and pretrained is not None:
        trunk = TrunkWeights.of(pretrained, timm)
    new_heads: tuple[Head, ...] = ()
    if kind == "detector" and pretrained is not None and model == "auto":
        name = str(pretrained)
        why = "architecture of the pretrained detector, with heads for these categories"
        config, new_heads = config_for(pretrained, data)
    elif isinstance(model, ModelConfig):
        name = "configuration"
        config = model
    else:
        name = model
        if name == "auto":
            name, why = _architecture(len(data), trunk, device)
        known = get_args(presets.Preset)
        if name not in known:
            raise ValueError(f'model: expected "auto" or one of {", ".join(known)}, got "{name}"')
        config = getattr(presets, name)(data.categories)
    if trunk is not None:
        config = with_trunk(config, trunk)
    if (fitted := data.intensity_range()) is not None:
        config = replace(config, input=replace(config.input, intensity_range=fitted))

    of_model: dict[str, Any] = {}
    of_training: dict[str, Any] = {}
    for setting, value in settings.items():
        if setting.startswith("model."):
            of_model[setting.removeprefix("model.")] = value
        else:
            of_training[setting] = value
    config = override_config(config, of_model, "model.")
    training = override_config(TrainConfig(), of_training)

    choices = Choices(kind, device, frozenset(settings), config, training)
    choices.reasons.append(Reason("model", name, why))
    choices.reasons += [
        Reason(f"model.{head}", "new head", NEW_HEAD)
        for head in new_heads
        if getattr(config, head) is not None
    ]
    starts = {
        "none": "random weights",
        "trunk": "ImageNet trunk; the other weights are random",
    }
    start = starts.get(kind, "detector; all weights that fit are kept")
    if why_pretrained:
        start = f"{start}. {why_pretrained}"
    choices.reasons.append(Reason("pretrained", pretrained or "none", start))
    if trunk is not None:
        for name in ("mean", "std"):
            choices.explain(f"model.input.{name}", "as the pretrained trunk expects")
    return choices


def _starts_at_hand(
    data: CocoDataset,
    facts: Statistics,
    model: str | ModelConfig,
    settings: Mapping[str, Any],
    device: torch.device,
) -> list[tuple[str | Path | None, str]]:
    """The weights to try where the user names none, the best start first, each with the reason.

    Within a time budget a detector comes before a trunk, and both before random weights.
    """
    trunk, why = _trunk_at_hand(facts, model, settings, device)
    starts: list[tuple[str | Path | None, str]] = [(trunk, why)]
    is_own_network = model != "auto" or any(name.startswith("model.trunk.") for name in settings)
    if settings.get("max_time") is None or is_own_network:
        return starts

    if (detector := detector_at_hand(data.categories)) is not None:
        why = "On this machine, and the time is short; --pretrained none avoids it"
        starts.insert(0, (detector, why))
    if trunk is not None:
        starts.append((None, "The time is too short for the weights on this machine"))
    return starts


def _trunk_at_hand(
    facts: Statistics, model: str | ModelConfig, settings: Mapping[str, Any], device: torch.device
) -> tuple[str | None, str]:
    """The ImageNet trunk to start from where the user names no weights, and the reason.

    It is for all images: at equal steps it raised the AP of photographs and of gray micrographs
    (docs/small_data.md).
    """
    timm = str(settings.get("model.trunk.timm", ""))
    others = [name for name in settings if name.startswith("model.trunk.") and name[12:] != "timm"]
    if model != "auto" or others:
        return None, ""  # the network is the user's choice

    size = "small" if _architecture(facts.images, None, device)[0] in SMALL else "large"
    found = at_hand(size, timm)
    if found is None:
        names = " or ".join(PREFERRED[size])
        return None, f"--pretrained {names} would start from ImageNet weights"
    return found.name, "On this machine; --pretrained none avoids it"


def _architecture(images: int, trunk: TrunkWeights | None, device: torch.device) -> tuple[str, str]:
    """The name of a preset, and the reason for it."""
    if trunk is not None:
        why = "matches the pretrained trunk"
        if trunk.timm:
            return "maskrcnn_r18_small", f"light heads on the pretrained trunk {trunk.timm}"
        name = trunk.record.name if trunk.record else trunk.path.name.lower()
        if "resnet18" in name:
            return "maskrcnn_r18_small", why
        if "resnet101" in name:
            return "maskrcnn_r101_fpn", why
        return "maskrcnn_r50_fpn", why

    if device.type != "cuda":
        return "maskrcnn_r18_small", "small network, for training on a CPU"
    if images >= choose.LITTLE:
        return "maskrcnn_r50_fpn", f"GPU and {counted(images, 'image')}"
    return (
        "maskrcnn_r18_small",
        f"small network, for {counted(images, 'image')} from random weights",
    )


def _shown(value: Any) -> str:
    """A value for the table; tuples of one value each are shown as a list of the values."""
    if isinstance(value, tuple):
        parts = (v[0] if isinstance(v, tuple) and len(v) == 1 else v for v in value)
        return f"({', '.join(map(_shown, parts))})"
    return f"{value:g}" if isinstance(value, float) else str(value)
