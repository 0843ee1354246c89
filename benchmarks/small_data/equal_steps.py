"""Trains one arm, and measures it at several points of the run.

In: an arm. Out: a line of results for each point: the step, the seconds so far, and AP.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import maskrcnn as mr
from maskrcnn.annotations.coco_types import CocoContent
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.training.callback import ActiveRun, Callback
from maskrcnn.training.fit import Run

from .annotation_kinds import annotated, annotation_seconds
from .arms import SCRATCH, Arm, RankedArms
from .measure import Validation
from .queue import Setup, append, commit
from .sources import (
    IMAGES,
    dataset,
    first_images,
    image_folder,
    images_within,
    ranking_pool,
    selected,
    validation,
    whole_training_set,
)

POINTS = (1 / 6, 1 / 3, 2 / 3)  # of the run, where it is measured on few images
COST_STEPS, COST_WARMUP = 5, 2
# The recipe is that of a CPU with these properties, wherever the run takes place.
MEMORY = 24.0
DTYPE = "bfloat16"


def run(arm: Arm, setup: Setup, indices: Sequence[int] | None = None) -> MaskRCNN:
    """Trains and measures an arm; its unfinished run is continued.

    Args:
        arm: what to train.
        setup: where and how.
        indices: the training images; None = as the arm says.

    Raises:
        Interrupted: the time is over; a checkpoint was written.
    """
    chosen = images_of(arm, setup) if indices is None else list(indices)
    content = selected(whole_training_set(arm.data, setup), chosen)
    data = dataset(arm.data, setup, annotated(content, arm.kind, arm.seed))
    measured = validation(arm.data, setup, chosen)
    recipe = recipe_of(arm, data)

    facts = {
        **arm.key,
        "device": setup.device,
        "commit": commit(),
        "images used": len(chosen),
        "objects": sum(not a.get("iscrowd") for a in content["annotations"]),
        "annotation seconds": round(
            annotation_seconds(content, arm.kind, {i["id"] for i in content["images"]})
        ),
    }
    earlier = {line["step"]: line["seconds"] for line in arm.lines(setup)}
    points = Points(arm, setup, measured, facts, max(earlier.values(), default=0.0))
    config = replace(recipe.training, tensorboard=False, evaluate_every=1e6, checkpoint_every=1e6)
    out = setup.out / arm.name
    print(f"{arm.name}: {recipe}", file=log_of(out), flush=True)

    trained = trained_in(out, recipe, data, config, setup, points)
    points.check()
    numbers = measured.all_numbers(trained.model, setup.device)
    step = {"step": arm.count, "seconds": points.seconds, "final": True}
    append(setup.results, {**facts, **step, **numbers})
    print(f"{arm.name}: {points.seconds:.0f} s, {shown(numbers)}", flush=True)
    return trained.model


def trained_in(
    out: Path, recipe: Any, data: Any, config: mr.TrainConfig, setup: Setup, *callbacks: Callback
) -> mr.Run:
    """Trains in a folder, or goes on there, until the time is over."""
    return mr.train(
        recipe.model,
        data,
        config=config,
        out=out,
        resume=(out / "config.json").exists(),
        progress=False,
        device=setup.device,
        pretrained=recipe.pretrained,
        callbacks=[*callbacks, Deadline(setup.stop_at)],
    )


def images_of(arm: Arm, setup: Setup) -> list[int]:
    """The indices of an arm's training images, where they are chosen at random."""
    if arm.budget:
        return images_within(arm.data, setup, arm.seed, arm.kind, arm.budget)
    return first_images(arm.data, setup, arm.seed, arm.images or IMAGES[arm.data])


def recipe_of(arm: Arm, data: Any) -> Any:
    """What `maskrcnn train` chooses on a CPU for these images and this start."""
    pretrained = None if arm.start == SCRATCH else arm.start
    fixed = {
        "steps": arm.count,
        "batch_size": arm.batch,
        "seed": arm.seed,
        "dtype": DTYPE,
        **dict(arm.settings),
    }
    return mr.choose_recipe(
        data, pretrained=pretrained, memory=MEMORY, device="cpu", settings=fixed
    )


def log_of(out: Path) -> Any:
    """The file for what the recipe chose, beside a run's folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_name(f"{out.name}.txt").open("a")


def shown(numbers: Mapping[str, Any]) -> str:
    """The APs of a line, in short."""
    parts = (f"{name} {numbers[name]:.3f}" for name in numbers if name.endswith((" AP", "AP75")))
    return ", ".join(parts)


class Points(Callback):
    """Measures the model at some steps, and counts the seconds of training between them.

    Args:
        arm: the arm.
        setup: where the lines go.
        measured: the validation images.
        facts: for each line.
        seconds: of earlier sessions.
    """

    def __init__(
        self,
        arm: Arm,
        setup: Setup,
        measured: Validation,
        facts: Mapping[str, Any],
        seconds: float,
    ) -> None:
        shares = POINTS if arm.has_curve else ()
        self.steps = {max(1, round(share * arm.count)) for share in shares}
        self.setup = setup
        self.measured = measured
        self.facts = facts
        self.seconds = seconds
        self.failure: Exception | None = None
        self._since = time.monotonic()

    def on_start(self, run: ActiveRun) -> None:
        """Starts the clock."""
        self._since = time.monotonic()

    def on_step(self, run: ActiveRun, row: Mapping[str, float]) -> None:
        """Measures, if it is time."""
        if run.step not in self.steps and run.step != run.total:
            return
        self.seconds += time.monotonic() - self._since
        if run.step in self.steps:
            try:
                self._measure(run)
            except Exception as error:  # `train` would only report it
                self.failure = error
        self._since = time.monotonic()

    def _measure(self, run: ActiveRun) -> None:
        numbers = self.measured.quick_numbers(run.model, self.setup.device)
        line = {"step": run.step, "seconds": round(self.seconds, 1), "final": False}
        append(self.setup.results, {**self.facts, **line, "few": numbers})

    def check(self) -> None:
        """Raises the exception of a measurement that failed."""
        self.seconds = round(self.seconds, 1)
        if self.failure is not None:
            raise self.failure


class Deadline(Callback):
    """Ends a run at a time, with a checkpoint from which it can be continued."""

    def __init__(self, stop_at: float) -> None:
        self.stop_at = stop_at

    def on_step(self, run: ActiveRun, row: Mapping[str, float]) -> None:
        """Asks to terminate, as a job scheduler does."""
        if time.time() > self.stop_at and run.step != run.total:
            signal.raise_signal(signal.SIGTERM)


def run_ranked(ranked: RankedArms, setup: Setup) -> None:
    """Trains, ranks the pool, adds the first images of the ranking, and so on."""
    content = whole_training_set(ranked.data, setup)
    pool = ranking_pool(ranked.data, setup)
    indices = first_images(ranked.data, setup, ranked.seed, ranked.sizes[0])

    for arm, following in zip(ranked.arms(), (*ranked.arms()[1:], None), strict=True):
        if not arm.is_finished(setup):
            run(arm, setup, indices)
        if following is None:
            return
        chosen = setup.out / f"{following.name}.images.json"
        if not chosen.exists():
            model = mr.load(setup.out / arm.name / "last.safetensors")
            added = best_ranked(
                model, ranked.data, setup, content, pool, indices, following.images - arm.images
            )
            chosen.write_text(json.dumps(sorted([*indices, *added])))
        indices = json.loads(chosen.read_text())


def best_ranked(
    model: MaskRCNN,
    name: str,
    setup: Setup,
    content: CocoContent,
    pool: Sequence[int],
    labeled: Sequence[int],
    count: int,
) -> list[int]:
    """The indices of the images that `rank` puts first."""
    where = image_folder(name, setup)
    files = {content["images"][i]["file_name"]: i for i in pool if i not in set(labeled)}
    known = [where / content["images"][i]["file_name"] for i in labeled]
    ranking = mr.rank_images(
        mr.Predictor(model, device=setup.device), [where / file for file in files], labeled=known
    )
    return [files[image.file.name] for image in ranking[:count]]


def step_cost(arm: Arm, setup: Setup) -> float:
    """CPU seconds of one step on one core, the median of a few."""
    torch.set_num_threads(1)
    content = selected(whole_training_set(arm.data, setup), images_of(arm, setup))
    data = dataset(arm.data, setup, annotated(content, arm.kind, arm.seed))
    recipe = recipe_of(arm, data)
    config = replace(
        recipe.training, steps=COST_WARMUP + COST_STEPS, tensorboard=False, evaluate_every=1e6
    )
    out = setup.out / "step_cost" / f"{arm.name}-{time.time_ns()}"
    result: Run = mr.train(
        recipe.model,
        data,
        config=config,
        out=out,
        progress=False,
        device="cpu",
        pretrained=recipe.pretrained,
        clock=time.process_time,
    )
    from maskrcnn.training.log import read_rows

    times = [row["time"] for row in read_rows(result.out / "metrics.csv")][COST_WARMUP - 1 :]
    # The mean, not the median: an image that is decoded or pasted makes a step dear.
    return (times[-1] - times[0]) / (len(times) - 1)
