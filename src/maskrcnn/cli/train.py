"""`maskrcnn train`: trains a model on your own data."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import ExistingFile

from ..presets import Preset
from ..runtime.plain_data import PlainData, PlainDict

TrackerName = Literal["mlflow", "wandb", "trackio"]
SECONDS = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def train(
    *settings: str,
    data: str,
    out: Path,
    images: Path | None = None,
    val: str | None = None,
    no_val: Annotated[bool, Parameter(negative=())] = False,
    val_images: Path | None = None,
    attribute: str | None = None,
    pretrained: str = "auto",
    model: Preset | Literal["auto"] = "auto",
    no_recipe: Annotated[bool, Parameter(negative=())] = False,
    config: ExistingFile | None = None,
    max_time: str | None = None,
    memory: float | None = None,
    unlabeled: Path | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    log: Annotated[tuple[TrackerName, ...], Parameter(negative=())] = (),
    on_error: Literal["raise", "drop"] = "raise",
    anyway: Annotated[bool, Parameter(negative=())] = False,
    device: str | None = None,
) -> None:
    """Train a model on annotated images.

    Chooses settings from the data and the machine, and shows the reason for each.

    Args:
        settings: Settings as name=value: any field of TrainConfig (batch_size=8, augment.crop=256),
            or of ModelConfig with "model." before it (model.input.scale=2, model.mask=none). The
            recipe does not change them.
        data: Annotations in any known format: a file or a folder. Select a split as
            data.yaml:train.
        out: Folder of the run: best and last model, logs, checkpoint.
        images: Folder of the images. Default: where the format says they are.
        val: Annotations to validate on, like --data. They decide which model is best. Default: the
            split "val" that --data itself has, or else 15 % of its images.
        no_val: Train on all images, without validation.
        val_images: Folder of the validation images. Default: --images.
        attribute: Attribute that holds the category, for VIA files whose regions have several.
        pretrained: Initial weights: an ImageNet trunk (resnet50_imagenet), or a detector, as the
            name of published weights, a run folder or a file. All weights that fit are kept. none:
            random weights. auto: an ImageNet trunk that is on this machine; with --max-time, first
            a detector that is on this machine.
        model: Architecture. auto uses that of a pretrained detector, or else one that suits the
            data and the machine.
        no_recipe: Use --model and the default settings. Choose nothing from the data.
        config: TOML file with fields of TrainConfig, and of ModelConfig under [model].
        max_time: Time budget of the whole command, such as 90s, 25m or 1.5h, instead of a number of
            epochs. Measures a few steps first and chooses what to train by them.
        memory: Memory limit in GiB. Default: all free memory.
        unlabeled: Folder of images without annotations to train on as well (experimental).
        resume: Continue the run in --out with its settings. Repeat the rest of the command.
        log: Also send the numbers to an experiment tracker, which must be installed. Repeat the
            option for several.
        on_error: Unusable annotations: list them and stop, or drop them with a warning.
        anyway: Train even if --max-time suffices for too few steps.
        device: cpu, cuda, cuda:1, ... Default: a GPU if there is one.
    """
    started = time.monotonic()  # before the imports, which take seconds
    from ..runtime.keep_memory import keep_memory
    from ..training.plan import plan_training
    from ..training.trackers import tracker_named
    from .fix_advice import with_fix_advice

    if val is not None and no_val:
        raise ValueError("--val and --no-val cannot be combined; omit one of them")
    keep_memory()
    plan = with_fix_advice(
        plan_training,
        data,
        images=images,
        val=False if no_val else val,
        val_images=val_images,
        attribute=attribute,
        pretrained=pretrained,
        model=model,
        recipe=not no_recipe,
        settings=parse_settings(config, settings, max_time),
        memory=memory,
        unlabeled=unlabeled,
        out=out,
        resume=resume,
        on_error=on_error,
        device=device,
        callbacks=[tracker_named(name) for name in log],
        anyway=anyway,
        started=started,
    )
    if plan.processes.main:
        print(plan)
    plan.run()


def seconds(text: str) -> float:
    """Seconds of a duration: 90, 90s, 25m, 1.5h.

    Raises:
        ValueError: not a duration, or not above 0.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|m|min|h)?", text.strip())
    value = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if value <= 0:
        raise ValueError(
            f'--max-time: expected a duration above 0 such as 90s, 25m or 1.5h, got "{text}"'
        )
    return value


def parse_settings(file: Path | None, words: Sequence[str], max_time: str | None) -> PlainDict:
    """All settings that the user gave, by dotted name; words override the file.

    Raises:
        ValueError: a word is not name=value, or the file is not TOML.
    """
    from ..settings import read_toml

    settings = _flat(read_toml(file)) if file else {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(
                f'expected a setting as name=value, such as batch_size=8, got "{word}"'
            )
        settings[name] = value
    if max_time:
        settings["max_time"] = seconds(max_time)
    return settings


def _flat(table: PlainData, prefix: str = "") -> PlainDict:
    """A TOML table by dotted names."""
    flat: PlainDict = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
