"""The models and the checkpoint that a run writes: when, and what of them is safe.

In: a learner and the progress of its run. Out: best.safetensors, last.safetensors and
checkpoint.safetensors in the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ..runtime.plain_data import PlainDict
from .checkpoint import write_checkpoint
from .learner import Learner
from .log import MetricsFile
from .run_state import RunState, RunTime
from .time_budget import TimeBudget
from .unreadable import UnreadableImages

# Share of the run that saving may take: large checkpoints are written less often than
# `checkpoint_every` says.
MOST_TIME_SAVING = 0.05
FROM_START = "so resume=True (--resume) starts the run from the beginning"


class RunFiles:
    """Writes the files that a run continues from, and its models.

    Args:
        out: the run folder.
        settings: of model, training and data, as in config.json.
        state: the progress of the run.
        learner: the model and the state of its training.
        metrics: the rows so far, whose length a checkpoint records.
        unreadable: images that could not be read, by data set.
        budget: gets the seconds of each checkpoint.
        time: of the run.
        saved_step: of the checkpoint in the folder; None = there is none.
    """

    def __init__(
        self,
        out: Path,
        settings: PlainDict,
        state: RunState,
        learner: Learner,
        metrics: MetricsFile,
        unreadable: Mapping[str, UnreadableImages],
        budget: TimeBudget,
        time: RunTime,
        saved_step: int | None,
    ) -> None:
        self.checkpoint = out / "checkpoint.safetensors"
        self._out = out
        self._settings = settings
        self._state = state
        self._learner = learner
        self._metrics = metrics
        self._unreadable = unreadable
        self._budget = budget
        self._time = time
        self._saved_step = saved_step
        self._saved_at = time.now()

    @property
    def due(self) -> bool:
        """Whether the run has ended or enough time has passed since the last checkpoint."""
        every = self._learner.config.checkpoint_every
        every = max(every, self._budget.checkpoint / MOST_TIME_SAVING)
        return self._state.finished or self._time.now() - self._saved_at > every

    def make_due(self) -> None:
        """Asks for a checkpoint after this step, however short ago the last one was."""
        self._saved_at = -math.inf

    def save(self) -> float:
        """Writes the newest model and the checkpoint; returns the seconds that this took."""
        self._time.count()
        if self._learner.processes.main:
            self.keep("last.safetensors")
            self._state.log_bytes = self._metrics.num_bytes()
            self._state.unreadable = {name: i.stored() for name, i in self._unreadable.items()}
            self._state.scaler = self._learner.scaler.state_dict()
            write_checkpoint(
                self.checkpoint,
                self._learner.tensors(),
                {"state": asdict(self._state), "settings": self._settings},
            )

        seconds = self._time.count()
        self._saved_at = self._time.now()
        self._budget.checkpoint = seconds
        self._saved_step = self._state.step
        return seconds

    def keep(self, name: str) -> None:
        """Writes the averaged weights as a model file."""
        from ..weights.load import save

        if self._learner.processes.main:
            info = {"step": self._state.step, "best": self._state.best}
            save(self._learner.averaged, self._out / name, info=info)

    def where_stopped(self) -> str:
        """Where an interrupted run ended, and what is saved, as text."""
        stopped = f"stopped after step {self._state.step}"
        if self._saved_step is None:
            return f"{stopped}; {self._out} holds no checkpoint yet, {FROM_START}"
        if self._saved_step == self._state.step:
            return f"{stopped}; the checkpoint in {self._out} holds it"
        return f"{stopped}; the checkpoint in {self._out} holds step {self._saved_step}"

    def what_is_safe(self) -> str:
        """What a run that ends by a fault has saved, and how it continues, as a sentence."""
        if self._saved_step is None:
            return f"{self._out} holds no checkpoint yet, {FROM_START}"
        return (
            f"The checkpoint of step {self._saved_step} in {self._out} is safe; "
            "after the repair, continue with resume=True (--resume)"
        )
