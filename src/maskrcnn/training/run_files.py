"""The models and the checkpoint that a run writes: when, and what of them is safe.

In: a learner and the progress of its run. Out: best.safetensors, last.safetensors and
checkpoint.safetensors in the run folder.
"""

from __future__ import annotations

import math
from dataclasses import asdict

from .checkpoint import write_checkpoint
from .log import MetricsFile
from .run_parts import RunParts

# Share of the run that saving may take: large checkpoints are written less often than
# `checkpoint_every` says.
MOST_TIME_SAVING = 0.05
FROM_START = "so resume=True (--resume) starts the run from the beginning"


class RunFiles:
    """Writes the files that a run continues from, and its models.

    Args:
        run: the parts of the run.
        metrics: the rows so far, whose length a checkpoint records.
    """

    def __init__(self, run: RunParts, metrics: MetricsFile) -> None:
        self.checkpoint = run.out / "checkpoint.safetensors"
        self._run = run
        self._metrics = metrics
        self._saved_step = run.state.step if run.is_resumed else None
        self._saved_at = run.time.now()

    @property
    def due(self) -> bool:
        """Whether the run has ended or enough time has passed since the last checkpoint."""
        every = self._run.config.checkpoint_every
        every = max(every, self._run.budget.checkpoint / MOST_TIME_SAVING)
        return self._run.state.finished or self._run.time.now() - self._saved_at > every

    def make_due(self) -> None:
        """Asks for a checkpoint after this step, however short ago the last one was."""
        self._saved_at = -math.inf

    def save(self) -> float:
        """Writes the newest model and the checkpoint; returns the seconds that this took."""
        self._run.time.count()
        if self._run.processes.main:
            self.keep("last.safetensors")
            self._run.state.log_bytes = self._metrics.num_bytes()
            self._run.state.unreadable = {
                name: i.stored() for name, i in self._run.unreadable.items()
            }
            self._run.state.scaler = self._run.learner.scaler.state_dict()
            write_checkpoint(
                self.checkpoint,
                self._run.learner.tensors(),
                {"state": asdict(self._run.state), "settings": self._run.settings},
            )

        seconds = self._run.time.count()
        self._saved_at = self._run.time.now()
        self._run.budget.checkpoint = seconds
        self._saved_step = self._run.state.step
        return seconds

    def keep(self, name: str) -> None:
        """Writes the averaged weights as a model file."""
        from ..weights.load import save

        if self._run.processes.main:
            info = {"step": self._run.state.step, "best": self._run.state.best}
            save(self._run.learner.averaged, self._run.out / name, info=info)

    def where_stopped(self) -> str:
        """Where an interrupted run ended, and what is saved, as text."""
        stopped = f"stopped after step {self._run.state.step}"
        if self._saved_step is None:
            return f"{stopped}; {self._run.out} holds no checkpoint yet, {FROM_START}"
        if self._saved_step == self._run.state.step:
            return f"{stopped}; the checkpoint in {self._run.out} holds it"
        return f"{stopped}; the checkpoint in {self._run.out} holds step {self._saved_step}"

    def what_is_safe(self) -> str:
        """What a run that ends by a fault has saved, and how it continues, as a sentence."""
        if self._saved_step is None:
            return f"{self._run.out} holds no checkpoint yet, {FROM_START}"
        return (
            f"The checkpoint of step {self._saved_step} in {self._run.out} is safe; "
            "after the repair, continue with resume=True (--resume)"
        )
