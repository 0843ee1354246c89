"""A run before its first step, new or continued: `prepare_run` makes what its parts share.

In: the arguments of `train`. Out: `RunParts`, and a run folder that belongs to the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ModelConfig, TrainConfig
from ..runtime.plain_data import PlainDict
from .checkpoint import (
    claim_folder,
    for_processes,
    read_session,
    recorded_settings,
    refuse_other_processes,
    refuse_other_settings,
)
from .learner import Learner
from .processes import Processes
from .resumed_length import plan_anew
from .run_display import RunDisplay
from .run_state import RunState, RunTime
from .setup import check_settings, make_network, number_of_steps
from .time_budget import TimeBudget
from .unreadable import UnreadableImages
from .validate import Metric, check_metrics

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..augmentation.own_augmentation import Augmentation
    from ..model.maskrcnn import MaskRCNN
    from ..weights.pretrained import Start


@dataclass(frozen=True)
class RunParts:
    """What the parts of a run share."""

    out: Path
    """The run folder."""
    sets: Mapping[str, CocoDataset]
    """The data sets: "data", "validation" and "unlabeled", as far as there are any."""
    config: TrainConfig
    """As the user gave it, but for the number of passes that keep the images per step."""
    processes: Processes
    start: Start
    """Where the weights come from."""
    learner: Learner
    settings: PlainDict
    """Settings of model, training and data, as in config.json."""
    state: RunState
    is_resumed: bool
    changes: str
    """What is other than in the earlier session, as text that continues a sentence."""
    budget: TimeBudget
    time: RunTime
    unreadable: Mapping[str, UnreadableImages]
    """Images that could not be read, by data set."""
    metrics: Mapping[str, Metric]
    """Numbers of the user's own for every evaluation."""
    log: RunDisplay

    @property
    def data(self) -> CocoDataset:
        """The annotated images."""
        return self.sets["data"]


def prepare_run(
    model: ModelConfig | MaskRCNN,
    data: CocoDataset,
    val: CocoDataset | None,
    config: TrainConfig,
    out: Path,
    processes: Processes,
    *,
    resume: bool,
    progress: bool,
    unlabeled: CocoDataset | None,
    pretrained: str | Path | None,
    clock: Callable[[], float],
    started: float,
    augmentation: Augmentation | None,
    metrics: Mapping[str, Metric],
) -> RunParts:
    """Makes the network, continues from a checkpoint if there is one, and claims the folder.

    `train` explains the arguments.

    Raises:
        ValueError: `out` holds a run and `resume` is False; settings or data differ from those of
            the run to resume; the categories differ; a setting is out of range.
    """
    check_settings(config, data, unlabeled)
    for part in (data, val):
        if part is not None and len(part):
            part.require_images()
    earlier = read_session(out, resume, processes)
    given = config
    changes = ""
    if earlier:
        config, changes = for_processes(given, earlier, out, processes)

    start = make_network(model, data, val, config, pretrained)
    learner = Learner(start.network, data, config, processes, unlabeled, clock)
    learner.augmentation = augmentation
    check_metrics(start.network, metrics)

    # A resumed run must have the same settings and data.
    given_sets = {"data": data, "validation": val, "unlabeled": unlabeled}
    sets = {name: part for name, part in given_sets.items() if part is not None}
    settings = recorded_settings(start, given, sets, earlier, processes, augmentation, metrics)
    refuse_other_processes(settings, processes)
    state = RunState(total=number_of_steps(config, len(data), learner.images_per_step))
    if earlier:
        refuse_other_settings(out, earlier, settings)
        state = RunState(**earlier.state)
        learner.restore(earlier.tensors, state.scaler)
        per_step = learner.images_per_step
        changes += plan_anew(state, config, earlier.length, len(data), per_step, out)
    claim_folder(out, settings, processes)

    return RunParts(
        out=out,
        sets=sets,
        config=config,
        processes=processes,
        start=start,
        learner=learner,
        settings=settings,
        state=state,
        is_resumed=earlier is not None,
        changes=changes,
        budget=TimeBudget(config.max_time or math.inf),
        time=RunTime(state, clock, started),
        unreadable=_unreadable(sets, config, state, learner),
        metrics=metrics,
        log=RunDisplay(progress and processes.main),
    )


def _unreadable(
    sets: Mapping[str, CocoDataset], config: TrainConfig, state: RunState, learner: Learner
) -> dict[str, UnreadableImages]:
    """Counters of the images that cannot be read, to which the loaders report."""
    counters = {
        name: UnreadableImages(part, config.unreadable, state.unreadable, name)
        for name, part in sets.items()
    }
    learner.note_unreadable = counters["data"].note
    if learner.teacher:
        learner.teacher.note_unreadable = counters["unlabeled"].note
    return counters
