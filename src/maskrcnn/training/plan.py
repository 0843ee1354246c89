"""The plan of a run, from data to settings, before the first step: `plan_training`. `maskrcnn
train` calls it once.

In: annotations, and what the user wants to decide. Out: a `TrainingPlan`: print it, then `run()`
it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..runtime.counted import counted
from .checkpoint import files_of_run, refuse_folder
from .plan_data import open_planned_data
from .plan_recipe import (
    PlannedRecipe,
    Wishes,
    check_given_settings,
    choose_planned,
    recorded_recipe,
)
from .processes import Processes
from .setup import duration
from .unlabeled import unlabeled_files

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..recipe.recipe import Recipe
    from .callback import Callback
    from .fit import Run
    from .forecast import Forecast

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
            folder of a detector. "auto" = an ImageNet trunk that is on this machine, or else
            random. None or "none" = random weights.
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
        >>> settings = {"steps": 1, "batch_size": 2, "augment.crop": 64, "tensorboard": False}
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
    check_given_settings(settings)
    refuse_folder(out, files_of_run(out), resume)
    if unlabeled is not None:
        unlabeled_files(unlabeled)

    processes = Processes.start(device)
    with processes.together():
        opened = open_planned_data(
            data,
            val,
            images=images,
            val_images=val_images or images,
            attribute=attribute,
            on_error=on_error,
            seed=int(settings.get("seed", 0)),
            progress=progress,
            processes=processes,
        )
        record = out / "config.json"
        if processes.from_main(resume and record.is_file()):
            recorded = recorded_recipe(record, settings, pretrained) if processes.main else None
            chosen = PlannedRecipe(processes.from_main(recorded))
        else:
            wishes = Wishes(model, pretrained, recipe, settings, memory, device)
            chosen = choose_planned(wishes, opened, started, clock, processes)
            if chosen.forecast is not None and chosen.forecast.is_hopeless and not anyway:
                raise ValueError(chosen.forecast.refusal)

    from ..recipe.memory_estimate import most_bytes

    return TrainingPlan(
        recipe=chosen.recipe,
        data=opened.training,
        val=opened.validation,
        val_source=opened.val_source,
        out=out,
        resume=resume,
        unlabeled=unlabeled,
        device=device,
        progress=progress,
        processes=processes,
        callbacks=callbacks,
        started=started,
        clock=clock,
        forecast=chosen.forecast,
        memory=chosen.memory,
        memory_limit=most_bytes(processes.device, memory),
    )
