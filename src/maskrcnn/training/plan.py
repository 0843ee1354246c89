"""The plan of a run, from data to settings, before the first step: `plan_training`. `maskrcnn
train` calls it once.

In: annotations, and what the user wants to decide. Out: a `TrainingPlan`: print it, then `run()`
it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..annotations.split import split_dataset
from ..config import ModelConfig, TrainConfig
from ..runtime.counted import counted
from ..settings import from_dict, override_config, with_current_names
from .checkpoint import files_of_run, refuse_folder
from .processes import Processes
from .setup import duration

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..recipe.recipe import Candidate, Recipe
    from ..weights.heads import Head
    from .callback import Callback
    from .fit import Run
    from .forecast import Forecast

VAL_SHARE = 0.15  # of the images is split off for validation where there is no validation data
# The memory of a run as a factor on that of its first steps: other objects, checkpoints, and
# fragmented memory. Measured: 1.5 to 1.7 in runs of 15 and 60 minutes
# (benchmarks/first_evening.py).
LATER_STEPS = 1.6
_SHOWN_CATEGORIES = 8


@dataclass(frozen=True)
class TrainingPlan:
    """A training run that has not begun. `print` shows it, with the reason for each setting."""

    recipe: Recipe
    """Configurations of model and training, with reasons, and the initial weights."""
    data: CocoDataset
    val: CocoDataset | None
    val_source: str
    """Where the validation data comes from, as text."""
    out: Path
    resume: bool
    unlabeled: str | Path | None
    device: str | None
    progress: bool
    processes: Processes
    started: float
    """When the time budget began, by `clock`."""
    clock: Callable[[], float]
    callbacks: Sequence[Callback] = ()
    forecast: Forecast | None = None
    """What fits into the time budget, if there is one."""
    memory: float | None = None
    """Expected bytes of this process at its peak, or of the GPU; None = not estimated."""
    memory_limit: float = math.inf
    """Bytes that it may have: those given, or all that are free."""

    def run(self) -> Run:
        """Trains. See `maskrcnn.train` for the result and the errors."""
        from .fit import train

        return train(
            self.recipe.model,
            self.data,
            val=self.val,
            config=self.recipe.training,
            out=self.out,
            resume=self.resume,
            progress=self.progress,
            device=self.device,
            unlabeled=self.unlabeled,
            pretrained=self.recipe.pretrained,
            callbacks=self.callbacks,
            clock=self.clock,
            started=self.started,
        )

    def __str__(self) -> str:
        model = self.recipe.model
        config = self.recipe.training
        heads = ["boxes"]
        if model.mask:
            heads.append("masks")
        if model.keypoint:
            heads.append("keypoints")

        names = [c.name for c in self.data.categories]
        categories = ", ".join(names[:_SHOWN_CATEGORIES])
        if len(names) > _SHOWN_CATEGORIES:
            categories += f" and {len(names) - _SHOWN_CATEGORIES} more"

        start = self.recipe.pretrained or "random weights"
        length = counted(config.epochs, "epoch")
        if config.steps:
            length = counted(config.steps, "step")
        elif config.max_time:
            length = duration(config.max_time)
        training = (
            length,
            f"{counted(config.batch_size * config.accumulate, 'image')} per step and process",
            f"{config.optimizer} with learning rate {config.learning_rate:g} "
            f"at {counted(config.reference_batch, 'image')} per step",
            config.schedule,
            config.dtype,
        )
        lines = [
            f"data        {self.data}",
            f"categories  {categories}",
            f"validation  {self.val_source}",
            f"model       {', '.join(heads)}; starts from {start}",
            f"training    {', '.join(training)}",
        ]
        if self.forecast is not None:
            lines.append(f"time        {self.forecast}")
        if self.memory is not None:
            text = f"memory      about {self.memory / 2**30:.1f} GiB at the peak"
            if self.memory > self.memory_limit:
                text += (
                    f", more than the {self.memory_limit / 2**30:.1f} GiB that there are; "
                    "use a smaller batch_size or model"
                )
            lines.append(text)
        lines += [f"run folder  {self.out}", "", str(self.recipe), ""]
        return "\n".join(lines)


def plan_training(
    data: str | Path | CocoDataset,
    *,
    images: str | Path | None = None,
    val: str | Path | CocoDataset | Literal[False] | None = None,
    val_images: str | Path | None = None,
    attribute: str | None = None,
    pretrained: str | Path | None = None,
    model: str = "auto",
    recipe: bool = True,
    settings: Mapping[str, Any] | None = None,
    memory: float | None = None,
    unlabeled: str | Path | None = None,
    out: str | Path = "runs/train",
    resume: bool = False,
    on_error: Literal["raise", "drop"] = "raise",
    device: str | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    anyway: bool = False,
    clock: Callable[[], float] | None = None,
    started: float | None = None,
) -> TrainingPlan:
    """Plans a training run: opens the data, splits off validation images, chooses settings.

    Args:
        data: annotations in any known format (a file or a folder; "data.yaml:train" names one of
            several splits), or an open data set.
        images: folder of the images; None = where the format says they are.
        val: annotations to validate on, like `data`. None = the split "val" that `data` itself has;
            if there is none, 15 % of the images are split off, at most 500. False trains on all
            images without validation.
        val_images: folder of the validation images; None = `images`.
        attribute: the attribute that holds the category, as for `load_dataset`.
        pretrained: initial weights: the name or file of an ImageNet trunk, or the name, file or run
            folder of a detector. "auto" = an ImageNet trunk that is on this machine if the data are
            photographs, or else random. None or "none" = random weights.
        model: name of a preset. "auto" uses the architecture of a pretrained detector, or else one
            that suits the data and the machine.
        recipe: choose settings from the data and the machine (`choose_recipe`). False uses the
            preset and the default settings.
        settings: values to use, by dotted name: fields of TrainConfig ("batch_size",
            "augment.crop") and, with "model.", of ModelConfig. The recipe does not change them.
        memory: memory limit in GiB; None = all free memory.
        unlabeled: folder of images without annotations to train on as well.
        out: folder of the run.
        resume: continue the run in `out` with its settings; `settings` must not contradict them.
        on_error: unusable annotations: "raise" an error that lists them, or "drop" them with a
            warning.
        device: such as "cpu" or "cuda"; None = a GPU if there is one.
        progress: show progress and messages, here and in `run`.
        callbacks: follow the run, see `Callback`.
        anyway: train even if the time budget suffices for so few steps that the result is useless.
        clock: returns the time in seconds, for the time budget; None = wall-clock time.
        started: the time, by `clock`, from which the budget counts; None = now.

    Returns:
        The plan. `print(plan)` shows it, `plan.run()` trains.

    Raises:
        ValueError: an unknown setting, preset or pretrained source; `out` holds a run and `resume`
            is False; a step needs more memory than is free; the time budget is hopeless.
        DataError: unusable annotations, or too few images to split.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> from maskrcnn.training.plan import plan_training
        >>> path = write_scenes("scenes", 4, size=64)
        >>> settings = {"steps": 2, "batch_size": 2, "augment.crop": 64, "tensorboard": False}
        >>> plan = plan_training(path, settings=settings, out="run", device="cpu", progress=False)
        >>> len(plan.data), len(plan.val)
        (3, 1)
        >>> run = plan.run()
        >>> run.out.name
        'run'
    """
    clock = clock or time.monotonic
    started = clock() if started is None else started

    # Reject invalid requests before reading the data.
    out = Path(out)
    settings = dict(settings or {})
    check_setting_names(settings)
    refuse_folder(out, files_of_run(out), resume)

    processes = Processes.start(device)
    with processes.together():
        dataset, validation, val_source = _open(
            data,
            images,
            val,
            val_images or images,
            attribute,
            on_error,
            int(settings.get("seed", 0)),
            progress,
            processes,
        )
        is_recorded = processes.from_main(resume and (out / "config.json").is_file())
        expected = None
        needed = None
        if is_recorded:
            chosen = processes.from_main(
                _recorded(out / "config.json", settings, pretrained) if processes.main else None
            )
        else:
            candidates = None
            if processes.main and recipe:
                candidates = _candidates(
                    dataset, validation, model, settings, pretrained, memory, device
                )
            elif processes.main:
                candidates = [_preset(dataset, model, settings, pretrained)]
            chosen, expected, needed = _in_time(
                processes.from_main(candidates),
                dataset,
                validation,
                started,
                clock,
                processes,
            )
            if expected is not None and expected.is_hopeless and not anyway:
                raise ValueError(expected.refusal)

    from ..recipe.memory_estimate import most_bytes

    return TrainingPlan(
        recipe=chosen,
        data=dataset,
        val=validation,
        val_source=val_source,
        out=out,
        resume=resume,
        unlabeled=unlabeled,
        device=device,
        progress=progress,
        processes=processes,
        callbacks=callbacks,
        started=started,
        clock=clock,
        forecast=expected,
        memory=needed,
        memory_limit=most_bytes(processes.device, memory),
    )


def _in_time(
    candidates: list[Candidate],
    data: CocoDataset,
    val: CocoDataset | None,
    started: float,
    clock: Callable[[], float],
    processes: Processes,
) -> tuple[Recipe, Forecast | None, float | None]:
    """The recipe to train, what fits into its time budget, and its memory at the peak."""
    from ..recipe.memory_estimate import expected_peak, program_bytes, results_bytes
    from .forecast import forecast

    recipe = candidates[0].recipe
    program = program_bytes()
    expected = None
    max_time = recipe.training.max_time
    if max_time is not None and recipe.training.steps is None:
        expected = forecast(
            candidates,
            data,
            max_time,
            validates=val is not None,
            started=started,
            clock=clock,
            processes=processes,
        )
        recipe = expected.recipe

    peak = None
    if recipe.memory is not None:
        device = str(processes.device)
        results = results_bytes(recipe.model, 0 if val is None else len(val), device)
        needed = recipe.memory
        if expected is not None and not device.startswith("cuda"):
            needed = max(needed, LATER_STEPS * expected.step_bytes)
        peak = expected_peak(program, needed + results, device)
    return recipe, expected, processes.from_main(peak)


def check_setting_names(settings: Mapping[str, Any]) -> None:
    """Checks the names and values of training settings, which needs no data.

    Raises:
        ValueError: an unknown setting, or a value of the wrong type.
    """
    override_config(TrainConfig(), _of_training(settings))


def _open(
    given: str | Path | CocoDataset,
    images: str | Path | None,
    val: str | Path | CocoDataset | Literal[False] | None,
    val_images: str | Path | None,
    attribute: str | None,
    on_error: Literal["raise", "drop"],
    seed: int,
    progress: bool,
    processes: Processes,
) -> tuple[CocoDataset, CocoDataset | None, str]:
    """The images to train on, those to validate on, and where the latter come from."""
    from ..formats.load_dataset import load_dataset, validation_split

    if not isinstance(given, str | Path):
        source, data = None, given
    else:
        source = given
        data = load_dataset(given, images, attribute=attribute, on_error=on_error)
    if len(data):
        data.require_images()

    if val is False:
        return data, None, "none: the last model will be the result"
    if val is None and source is not None:
        val = validation_split(source, images)

    if val is None:
        data, validation = _split(data, seed, progress, processes)
        text = (
            f"{counted(len(validation), 'image')} split off, {VAL_SHARE:.0%} by seed {seed}, "
            "similar images kept together; --no-val trains on all"
        )
        return data, validation, text
    if isinstance(val, str | Path):
        val = load_dataset(
            val, val_images, categories=data.categories, attribute=attribute, on_error=on_error
        )
    return data, val, str(val)


def _split(
    data: CocoDataset, seed: int, progress: bool, processes: Processes
) -> tuple[CocoDataset, CocoDataset]:
    """The images to train on and to validate on. The main process alone compares the images."""
    parts: tuple[CocoDataset, ...] = ()
    if processes.main:
        parts = split_dataset(data, VAL_SHARE, seed, progress=progress)
    training, validation = processes.from_main(
        [{part[i].image_id for i in range(len(part))} for part in parts]
    )
    indices = range(len(data))
    return (
        data.subset([i for i in indices if data[i].image_id in training]),
        data.subset([i for i in indices if data[i].image_id in validation]),
    )


def _recorded(path: Path, settings: Mapping[str, Any], pretrained: str | Path | None) -> Recipe:
    """The settings of the run to resume, changed by `settings`; `train` refuses changes that
    matter.
    """
    from ..recipe.recipe import Reason, Recipe

    run = with_current_names(json.loads(path.read_text()))
    model = from_dict(ModelConfig, run["model"])
    training = from_dict(TrainConfig, run["train"])
    of_training = _of_training(settings)
    if pretrained == "auto":
        pretrained = run.get("pretrained", {}).get("source")  # earlier runs have no record

    # A new length replaces the recorded one, also if it is of another kind.
    if "max_time" not in of_training and of_training.keys() & {"epochs", "steps"}:
        training = replace(training, max_time=None)
    if "steps" not in of_training and "epochs" in of_training:
        training = replace(training, steps=None)
    if "steps" not in of_training and "max_time" in of_training and training.max_time is None:
        training = replace(training, steps=None)
    return Recipe(
        override_config(model, _of_model(settings), "model."),
        override_config(training, of_training),
        (Reason("settings", path.name, "settings of the run to resume"),),
        pretrained,
    )


def _preset(
    data: CocoDataset, name: str, settings: Mapping[str, Any], pretrained: str | Path | None
) -> Candidate:
    """A preset and the default settings, chosen without looking at the data."""
    from .. import presets
    from ..recipe.economy import ENOUGH
    from ..recipe.recipe import NEW_HEAD, Candidate, Reason, Recipe
    from ..weights.pretrained import config_for, kind_of
    from ..weights.trunk_weights import TrunkWeights, with_trunk

    if pretrained == "auto":
        pretrained = None
    timm = str(settings.get("model.trunk.timm", ""))
    kind = kind_of(pretrained, timm)
    new_heads: tuple[Head, ...] = ()
    if name == "auto" and pretrained is not None and kind == "detector":
        name = str(pretrained)
        model, new_heads = config_for(pretrained, data)
    elif name == "auto":
        raise ValueError(
            "recipe=False (--no-recipe) needs a model (--model), such as maskrcnn_r18_small"
        )
    else:
        model = getattr(presets, name)(data.categories)

    # The intensity range of 16-bit images is always fitted.
    changes = {"input.intensity_range": data.intensity_range()} | _of_model(settings)
    start = "detector; all weights that fit are kept"
    if pretrained is None or kind == "none":
        start = "all weights are random, those of the heads too"
    elif kind == "trunk":
        model = with_trunk(model, TrunkWeights.of(pretrained, timm))
        start = "ImageNet trunk; the heads and all other weights are random"
    reasons = (
        Reason("model", name, "given; nothing is chosen from the data"),
        *(Reason(f"model.{head}", "new head", NEW_HEAD) for head in new_heads),
        Reason("pretrained", pretrained or "none", start),
        Reason("settings", "defaults", "no recipe: the default settings, unless given"),
    )
    made = Recipe(
        override_config(model, changes, "model."),
        override_config(TrainConfig(), _of_training(settings)),
        reasons,
        pretrained,
    )
    return Candidate("the given settings", made, ENOUGH[kind], work=1.0, kind=kind)


def _candidates(
    data: CocoDataset,
    val: CocoDataset | None,
    model: str,
    settings: Mapping[str, Any],
    pretrained: str | Path | None,
    memory: float | None,
    device: str | None,
) -> list[Candidate]:
    """The recipes of the main process: the free memory of others may differ."""
    from ..recipe.recipe import recipe_candidates

    return recipe_candidates(
        data,
        val=val,
        model=model,
        pretrained=pretrained,
        memory=memory,
        device=device,
        settings=settings,
    )


def _of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith("model.")}


def _of_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix("model."): value
        for name, value in settings.items()
        if name.startswith("model.")
    }
