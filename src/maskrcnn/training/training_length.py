"""How many steps a run with a time budget has: as many as fit into it.

In: the progress of a run and what has been measured in it. Out: the number of steps in its state,
decided early in a run with `max_time`, and corrected a few times.
"""

from __future__ import annotations

import math

from ..runtime.counted import counted
from .evaluations import Evaluations
from .run_parts import RunParts
from .setup import duration
from .time_budget import next_review, with_least_left

REPORTED_CHANGE = 0.02  # of the number of steps, when it is corrected


class TrainingLength:
    """Decides and corrects the number of steps of a run with `max_time`.

    Args:
        run: the parts of the run; its state gets the number.
        evaluations: of the run; None without validation.
    """

    def __init__(self, run: RunParts, evaluations: Evaluations | None) -> None:
        self._run = run
        self._evaluations = evaluations

    def due(self) -> bool:
        """Whether to decide or correct the number of steps now."""
        if not self._run.budget.steps:
            return False  # resumed before an evaluation
        if self._run.state.total is None:
            return self._run.processes.from_main(self._run.budget.ready(self._run.state.seconds))
        return self._run.state.step == self._run.state.review

    def update(self) -> None:
        """Decides or corrects how many steps fit into `max_time`."""
        state = self._run.state
        budget = self._run.budget
        before = state.total
        has_teacher = self._run.learner.teacher is not None
        if has_teacher:
            budget.burn_in = self._run.config.unlabeled.burn_in
            budget.unlabeled = self._run.learner.unlabeled_seconds()
            self._run.time.count()

        if self._evaluations is not None and not budget.evaluation:
            self._evaluations.plan(1 + math.floor(self._fitting() / self._steps_per_evaluation))

        if before is None or budget.known:
            state.total = self._fitting()
            self._report(before, state.total)

        assert state.total is not None
        # With unlabeled images the remaining steps are slower than those measured: no correction.
        state.review = None if has_teacher else next_review(state.step, state.total)

    @property
    def _steps_per_evaluation(self) -> float:
        images = self._run.config.evaluate_every * len(self._run.learner.data)
        return images / self._run.learner.images_per_step

    def _fitting(self) -> int:
        """How many steps fit into `max_time`."""
        state = self._run.state
        total = self._run.processes.from_main(
            self._run.budget.total(
                state.step,
                state.seconds,
                self._steps_per_evaluation,
                self._run.config.checkpoint_every,
            )
        )
        at_least = total if state.total is None else with_least_left(state.step, total)
        return min(at_least, self._run.config.steps or total)

    def _report(self, before: int | None, total: int) -> None:
        """Says how many steps fit, unless it has hardly changed."""
        if before is not None and abs(total - before) <= REPORTED_CHANGE * before:
            return
        was = "" if before is None else f" (was {before:,})"
        self._run.log.say(
            f"{counted(total, 'step')}{was} in {duration(self._run.budget.max_time)}, "
            f"{self._run.budget.step_seconds():.3g} s per step"
        )
