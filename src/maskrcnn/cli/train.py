"""`maskrcnn train`: a model for one's own data."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.types import ExistingFile

if TYPE_CHECKING:
    from ..config import ModelConfig, TrainConfig
    from ..data.coco import CocoDataset
    from ..model.maskrcnn import MaskRCNN

Preset = Literal["maskrcnn_r18_small", "maskrcnn_r50_fpn", "maskrcnn_r101_fpn", "maskrcnn_r50_c4", "torchvision_v1", "torchvision_v2"]


def train(
    *settings: str,
    data: ExistingFile,
    out: Path,
    images: Path | None = None,
    val: ExistingFile | None = None,
    val_images: Path | None = None,
    model: Preset = "maskrcnn_r18_small",
    start: Annotated[str | None, Parameter(name="--from")] = None,
    config: ExistingFile | None = None,
    max_time: str | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    on_error: Literal["raise", "drop"] = "raise",
    device: str | None = None,
) -> None:
    """Train a model on annotated pictures.

    Args:
        settings: Changes as name=value: any field of TrainConfig (batch_size=8, augment.crop=256), and with "model." of ModelConfig
            (model.input.scale=2, model.mask=none).
        data: COCO annotation file.
        out: Folder of the run: best and last model, logs, checkpoint.
        images: Folder of the pictures; by default the annotation file's own.
        val: COCO annotation file to validate on; the best model is chosen by it.
        val_images: Folder of the validation pictures; by default --images.
        model: Architecture to train from scratch.
        start: Model to start from instead: name of published weights, run folder or checkpoint; its last layers begin anew for categories that
            it does not know. The name of an ImageNet trunk (resnet50_imagenet) fills the trunk of --model.
        config: TOML file with fields of TrainConfig, and of ModelConfig under [model].
        max_time: Time for training, as 90s, 25m or 1.5h, instead of a number of epochs.
        resume: Go on with the run in --out; give the same command again.
        on_error: Unusable annotations: list them and stop, or drop them with a warning.
        device: cpu, cuda, cuda:1, ..; by default a GPU where there is one.
    """
    from ..data.coco import CocoDataset
    from ..training.fit import train as fit
    from .device import chosen

    training, architecture = settings_of(config, settings, max_time)
    pictures = CocoDataset(data, images, on_error=on_error)
    validation = CocoDataset(val, val_images or images, categories=pictures.categories, on_error=on_error) if val else None
    network = network_of(pictures, model, start, architecture)
    print(plan(network, pictures, validation, training, start or model, out))
    fit(network, pictures, validation, config=training, out=out, resume=resume, device=device and chosen(device))


def seconds(text: str) -> float:
    """Seconds of a duration: 90, 90s, 25m, 1.5h.

    Raises:
        ValueError: not a duration, or not above 0.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|m|min|h)?", text.strip())
    value = float(found[1]) * {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[found[2]] if found else 0.0
    if value <= 0:
        raise ValueError(f'--max-time: got "{text}", must be a duration above 0 such as 90s, 25m or 1.5h')
    return value


def settings_of(file: Path | None, words: Sequence[str], max_time: str | None) -> tuple[TrainConfig, dict[str, Any]]:
    """The training's configuration, and the changes to the model's by dotted name; words overrule the file.

    Raises:
        ValueError: a word that is not name=value, an unknown name, or a value of the wrong type.
    """
    from ..config import TrainConfig
    from ..settings import override

    changes = _flat(tomllib.loads(file.read_text())) if file else {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f'"{word}": a setting is name=value, such as batch_size=8 or model.box.max_detections=300')
        changes[name] = value
    model = {name.removeprefix("model."): value for name, value in changes.items() if name.startswith("model.")}
    training = override(TrainConfig(), {name: value for name, value in changes.items() if not name.startswith("model.")})
    return (replace(training, max_time=seconds(max_time)) if max_time else training), model


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A TOML table as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def network_of(data: CocoDataset, preset: str, start: str | None, changes: Mapping[str, Any]) -> ModelConfig | MaskRCNN:
    """What to train: a preset for the categories of the data, or a loaded model with heads for them.

    Raises:
        ValueError: an unknown setting or weights; a start that does not fit.
    """
    from .. import presets
    from ..model.maskrcnn import MaskRCNN
    from ..settings import override
    from ..weights.catalogue import weights
    from ..weights.load import load, load_trunk
    from ..weights.transfer import for_categories, transfer

    fitted = {"input.intensity_range": data.intensity_range()}  # of 16-bit pictures
    trunks = [record.name for record in weights() if record.kind == "trunk"]
    if start is None or start.lower().replace("-", "_") in trunks:
        config = override(getattr(presets, preset)(data.categories), fitted | dict(changes))
        return config if start is None else load_trunk(MaskRCNN.from_config(config), start)
    model = load(start)
    return transfer(model, override(for_categories(model.config, data.categories), fitted | dict(changes)))


def plan(network: ModelConfig | MaskRCNN, data: CocoDataset, validation: CocoDataset | None, config: TrainConfig, name: str, out: Path) -> str:
    """What is going to happen, in a few lines."""
    model = getattr(network, "config", network)
    heads = ", ".join(["boxes", *(["masks"] if model.mask else []), *(["keypoints"] if model.keypoint else [])])
    names = ", ".join(c.name for c in data.categories[:8]) + (f" and {len(data.categories) - 8} more" if len(data.categories) > 8 else "")
    length = f"{config.steps} steps" if config.steps else f"{config.max_time / 60:g} minutes" if config.max_time else f"{config.epochs:g} epochs"
    rate = f"{config.optimizer} with learning rate {config.learning_rate:g} at {config.reference_batch} images a step, {config.schedule}"
    return "\n".join(
        (
            f"data        {data}",
            f"categories  {names}",
            f"validation  {validation or 'none: the last model will be the result'}",
            f"model       {name}: {heads}",
            f"training    {length}, {config.batch_size * config.accumulate} images a step and process, {rate}, {config.precision}",
            f"run folder  {out}",
        )
    )
