"""The recipe of a planned run: recorded, chosen from data and machine, or a preset.

In: data, and what the user decides. Out: a `Recipe`; with a time budget, the candidate of which
enough steps fit into it, and the memory that it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig, TrainConfig
from ..settings import check_changes, from_dict, override_config, with_current_names
from .plan_data import PlannedData
from .processes import Processes

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..recipe.recipe import Candidate, Recipe
    from ..weights.heads import Head
    from .forecast import Forecast

# The memory of a run as a factor on that of its first steps: other objects, checkpoints, and
# fragmented memory. Measured: 1.5 to 1.7 in runs of 15 and 60 minutes
# (benchmarks/first_evening.py).
LATER_STEPS = 1.6


@dataclass(frozen=True)
class PlannedRecipe:
    """Configurations of model and training, and what they will take."""

    recipe: Recipe
    forecast: Forecast | None = None
    """What fits into the time budget, if there is one."""
    memory: float | None = None
    """Expected bytes of this process at its peak, or of the GPU; None = not estimated."""


@dataclass(frozen=True)
class Wishes:
    """What the user decides about model and settings; `plan_training` explains the fields."""

    model: str
    pretrained: str | Path | None
    recipe: bool
    settings: Mapping[str, Any]
    memory: float | None
    device: str | None

    def candidates(self, data: PlannedData) -> list[Candidate]:
        """The recipes to choose from, the best first."""
        if not self.recipe:
            given = (self.model, self.settings, self.pretrained)
            return [preset_candidate(data.training, *given)]
        from ..recipe.recipe import recipe_candidates

        return recipe_candidates(
            data.training,
            val=data.validation,
            model=self.model,
            pretrained=self.pretrained,
            memory=self.memory,
            device=self.device,
            settings=self.settings,
        )


def choose_planned(
    wishes: Wishes,
    data: PlannedData,
    started: float,
    clock: Callable[[], float],
    processes: Processes,
) -> PlannedRecipe:
    """Chooses what to train; the main process alone, as the free memory of others may differ.

    Args:
        wishes: of the user.
        data: to train on.
        started: the time, by `clock`, from which a time budget counts.
        clock: returns the time in seconds.
        processes: which measure steps together.
    """
    candidates = processes.from_main(wishes.candidates(data) if processes.main else None)
    return _in_time(candidates, data, started, clock, processes)


def _in_time(
    candidates: list[Candidate],
    data: PlannedData,
    started: float,
    clock: Callable[[], float],
    processes: Processes,
) -> PlannedRecipe:
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
            data.training,
            max_time,
            validates=data.validation is not None,
            started=started,
            clock=clock,
            processes=processes,
        )
        recipe = expected.recipe

    peak = None
    if recipe.memory is not None:
        device = str(processes.device)
        results = results_bytes(recipe.model, len(data.validation or ()), device)
        needed = recipe.memory
        if expected is not None and not device.startswith("cuda"):
            needed = max(needed, LATER_STEPS * expected.step_bytes)
        peak = expected_peak(program, needed + results, device)
    return PlannedRecipe(recipe, expected, processes.from_main(peak))


def check_given_settings(settings: Mapping[str, Any]) -> None:
    """Checks names and values of all settings that a user gave, which needs no data.

    Raises:
        ValueError: an unknown setting, a value of the wrong type, or a number out of its range.
    """
    override_config(TrainConfig(), of_training(settings))
    check_changes(ModelConfig, of_model(settings), "model.")


def recorded_recipe(
    path: Path, settings: Mapping[str, Any], pretrained: str | Path | None
) -> Recipe:
    """The settings of the run to resume, changed by `settings`; `train` refuses changes that
    matter.
    """
    from ..recipe.recipe import Reason, Recipe

    run = with_current_names(json.loads(path.read_text()))
    model = from_dict(ModelConfig, run["model"])
    training = from_dict(TrainConfig, run["train"])
    given = of_training(settings)
    if pretrained == "auto":
        pretrained = run.get("pretrained", {}).get("source")  # earlier runs have no record

    # A new length replaces the recorded one, also if it is of another kind.
    if "max_time" not in given and given.keys() & {"epochs", "steps"}:
        training = replace(training, max_time=None)
    if "steps" not in given and "epochs" in given:
        training = replace(training, steps=None)
    if "steps" not in given and "max_time" in given and training.max_time is None:
        training = replace(training, steps=None)
    return Recipe(
        override_config(model, of_model(settings), "model."),
        override_config(training, given),
        (Reason("settings", path.name, "settings of the run to resume"),),
        pretrained,
    )


def preset_candidate(
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
    changes = {"input.intensity_range": data.intensity_range()} | of_model(settings)
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
        override_config(TrainConfig(), of_training(settings)),
        reasons,
        pretrained,
    )
    return Candidate("the given settings", made, ENOUGH[kind], work=1.0, kind=kind)


def of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of TrainConfig."""
    return {name: value for name, value in settings.items() if not name.startswith("model.")}


def of_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of ModelConfig, without "model."."""
    return {
        name.removeprefix("model."): value
        for name, value in settings.items()
        if name.startswith("model.")
    }
