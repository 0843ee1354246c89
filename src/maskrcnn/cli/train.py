"""`maskrcnn train`: a model for one's own data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.types import ExistingFile

from ..presets import Preset

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..recipe.recipe import Recipe

SPLIT = 0.15  # of the images, where no validation data are given


def train(
    *settings: str,
    data: str,
    out: Path,
    images: Path | None = None,
    val: str | None = None,
    val_images: Path | None = None,
    pretrained: str = "none",
    model: Preset | Literal["auto"] = "auto",
    recipe: Literal["auto", "none"] = "auto",
    config: ExistingFile | None = None,
    max_time: str | None = None,
    memory: float | None = None,
    unlabeled: Path | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    on_error: Literal["raise", "drop"] = "raise",
    device: str | None = None,
) -> None:
    """Train a model on annotated images, with settings chosen from the data and the machine, which are shown with reasons.

    Args:
        settings: Changes as name=value: any field of TrainConfig (batch_size=8, augment.crop=256), and with "model." of ModelConfig
            (model.input.scale=2, model.mask=none). What is given is not chosen.
        data: Annotations in any known format: a file or a folder; "data.yaml:train" names one of several splits.
        out: Folder of the run: best and last model, logs, checkpoint.
        images: Folder of the images; by default where the format has them.
        val: Annotations to validate on, like --data; the best model is chosen by them. By default the split "val" that --data itself has, else a part
            of --data is split off; none trains on all.
        val_images: Folder of the validation images; by default --images.
        pretrained: What to start from: the name of an ImageNet trunk (resnet50_imagenet), or a detector, as the name of published weights, a run
            folder or a checkpoint, of which all that fits is kept; none is random weights.
        model: Architecture; auto is that of a pretrained detector, else one that fits data and machine.
        recipe: none takes --model and the defaults as they are, without a look at the data.
        config: TOML file with fields of TrainConfig, and of ModelConfig under [model].
        max_time: Time for training, as 90s, 25m or 1.5h, instead of a number of epochs.
        memory: GiB that training may take; by default what is free.
        unlabeled: Folder of images without annotations to learn from as well.
        resume: Go on with the run in --out and its settings; give the same command again.
        on_error: Unusable annotations: list them and stop, or drop them with a warning.
        device: cpu, cuda, cuda:1, ..; by default a GPU where there is one.
    """
    from ..formats.load_dataset import load_dataset, validation_split
    from ..runtime.keep_memory import keep_memory
    from ..training.checkpoint import held, refuse_folder
    from ..training.fit import train as fit
    from ..training.processes import Processes
    from .device import chosen

    given = settings_of(config, settings, max_time)
    check_names(given)
    refuse_folder(out, held(out), resume)
    keep_memory()
    dataset = load_dataset(data, images, on_error=on_error)
    place = device and chosen(device)
    processes = Processes.start(place)
    start = None if pretrained.lower() == "none" else pretrained
    dataset, validation, judged = parted(
        dataset,
        val or validation_split(data, images),
        val_images or images,
        on_error,
        int(given.get("seed", 0)),
    )
    if resume and (out / "config.json").is_file():
        made = recorded(out / "config.json", given)
    elif recipe == "none":
        made = unfitted(dataset, model, start, given)
    else:
        from ..recipe.recipe import choose_recipe as choose

        made = processes.from_main(  # their free memory may differ: one chooses for all
            choose(
                dataset, model=model, pretrained=start, memory=memory, device=place, settings=given
            )
            if processes.main
            else None
        )
    if processes.main:
        print(plan(made, dataset, judged, pretrained, out))
    fit(
        made.model,
        dataset,
        validation,
        config=made.training,
        out=out,
        resume=resume,
        device=place,
        pretrained=start,
        unlabeled=unlabeled,
    )


def seconds(text: str) -> float:
    """Seconds of a duration: 90, 90s, 25m, 1.5h.

    Raises:
        ValueError: not a duration, or not above 0.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|m|min|h)?", text.strip())
    value = (
        float(found[1]) * {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[found[2]]
        if found
        else 0.0
    )
    if value <= 0:
        raise ValueError(
            f'--max-time: got "{text}", must be a duration above 0 such as 90s, 25m or 1.5h'
        )
    return value


def settings_of(file: Path | None, words: Sequence[str], max_time: str | None) -> dict[str, Any]:
    """All that the user set, by dotted name; words overrule the file.

    Raises:
        ValueError: a word that is not name=value, or a file that is no TOML.
    """
    from ..settings import read_toml

    changes = _flat(read_toml(file)) if file else {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(
                f'"{word}": a setting is name=value, such as batch_size=8 or model.box.max_detections=300'
            )
        changes[name] = value
    return changes | ({"max_time": seconds(max_time)} if max_time else {})


def check_names(given: Mapping[str, Any]) -> None:
    """Refuses what is no setting of a training, before the data are read."""
    from ..config import TrainConfig
    from ..settings import override_config

    override_config(TrainConfig(), _training(given))


def _training(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if not name.startswith("model.")}


def _model(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix("model."): value
        for name, value in given.items()
        if name.startswith("model.")
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A TOML table as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= (
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {prefix + name: value}
        )
    return flat


def parted(
    data: CocoDataset,
    val: str | None,
    images: Path | None,
    on_error: Literal["raise", "drop"],
    seed: int,
) -> tuple[CocoDataset, CocoDataset | None, str]:
    """What to learn from, what to judge by, and that in words."""
    from ..annotations.split import split_dataset
    from ..formats.load_dataset import load_dataset

    if val is None:
        data, validation = split_dataset(data, SPLIT, seed, progress=True)
        said = f"{len(validation)} images split off, {SPLIT:.0%} by seed {seed}, images that look alike together; --val none trains on all"
        return data, validation, said
    if val.lower() == "none":
        return data, None, "none: the last model will be the result"
    validation = load_dataset(val, images, categories=data.categories, on_error=on_error)
    return data, validation, str(validation)


def unfitted(
    data: CocoDataset, name: str, pretrained: str | None, given: Mapping[str, Any]
) -> Recipe:
    """The preset and the defaults as they are."""
    from .. import presets
    from ..config import TrainConfig
    from ..recipe.recipe import Reason, Recipe
    from ..settings import override_config
    from ..weights.pretrained import config_of, kind_of

    if name == "auto" and kind_of(pretrained) == "detector" and pretrained:
        name, model = pretrained, config_of(pretrained, data.categories)
    elif name == "auto":
        raise ValueError("--recipe none needs a --model, such as maskrcnn_r18_small")
    else:
        model = getattr(presets, name)(data.categories)
    model = override_config(
        model, {"input.intensity_range": data.intensity_range()} | _model(given), "model."
    )  # of 16-bit images
    return Recipe(
        model,
        override_config(TrainConfig(), _training(given)),
        (Reason("model", name, "as given, with no look at the data"),),
        pretrained,
    )


def recorded(path: Path, given: Mapping[str, Any]) -> Recipe:
    """The settings of a run that goes on, with what the command says now: a difference is refused by name when it is resumed."""
    from ..config import ModelConfig, TrainConfig
    from ..recipe.recipe import Reason, Recipe
    from ..settings import from_dict, override_config, with_current_names

    run = json.loads(path.read_text())
    model, training = (
        from_dict(ModelConfig, with_current_names(run["model"])),
        from_dict(TrainConfig, with_current_names(run["train"])),
    )
    reasons = (Reason("settings", path.name, "of the run that goes on"),)
    return Recipe(
        override_config(model, _model(given), "model."),
        override_config(training, _training(given)),
        reasons,
    )


def plan(made: Recipe, data: CocoDataset, judged: str, pretrained: str, out: Path) -> str:
    """What is going to happen, in a few lines, and why."""
    from ..training.setup import duration

    model, config = made.model, made.training
    heads = ", ".join(
        ["boxes", *(["masks"] if model.mask else []), *(["keypoints"] if model.keypoint else [])]
    )
    names = ", ".join(c.name for c in data.categories[:8]) + (
        f" and {len(data.categories) - 8} more" if len(data.categories) > 8 else ""
    )
    length = (
        f"{config.steps} steps"
        if config.steps
        else duration(config.max_time)
        if config.max_time
        else f"{config.epochs:g} epochs"
    )
    rate = f"{config.optimizer} with learning rate {config.learning_rate:g} at {config.reference_batch} images a step, {config.schedule}"
    return "\n".join(
        (
            f"data        {data}",
            f"categories  {names}",
            f"validation  {judged}",
            f"model       {heads}; starts from {pretrained if pretrained.lower() != 'none' else 'random weights'}",
            f"training    {length}, {config.batch_size * config.accumulate} images a step and process, {rate}, {config.precision}",
            f"run folder  {out}",
            "",
            str(made),
            "",
        )
    )
