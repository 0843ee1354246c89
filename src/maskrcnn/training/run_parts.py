"""A run before its first step, new or continued: `prepare_run` makes what its parts share.

In: a `RunRequest`. Out: `RunParts`, and a run folder that belongs to the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import TrainConfig
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
from .run_request import RunRequest
from .run_state import RunState, RunTime
from .setup import check_settings, make_network, number_of_steps
from .time_budget import TimeBudget
from .unreadable import UnreadableImages
from .validate import Metric, check_metrics

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
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


def prepare_run(request: RunRequest) -> RunParts:
    """Makes the network, continues from a checkpoint if there is one, and claims the folder.

    Raises:
        ValueError: `out` holds a run and `resume` is False; settings or data differ from those of
            the run to resume; the categories differ; a setting is out of range.
    """
    clock = request.clock
    started = clock() if request.started is None else request.started
    data = request.data
    out = request.out
    processes = request.processes

    check_settings(request.config, data, request.unlabeled)
    for part in (data, request.val):
        if part is not None and len(part):
            part.require_images()
    earlier = read_session(out, request.resume, processes)
    config = request.config
    changes = ""
    if earlier:
        config, changes = for_processes(config, earlier, out, processes)

    start = make_network(request.model, data, request.val, config, request.pretrained)
    learner = Learner(start.network, data, config, processes, request.unlabeled, clock)
    learner.augmentation = request.augmentation
    check_metrics(start.network, request.metrics)

    # A resumed run must have the same settings and data.
    settings = recorded_settings(request, start, earlier)
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
        sets=request.sets,
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
        unreadable=_unreadable(request.sets, config, state, learner),
        metrics=request.metrics,
        log=RunDisplay(request.progress and processes.main),
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
