"""How many steps a run has: given, or as many as fit into its time budget.

In: the progress of a run and what has been measured in it. Out: the number of steps in its state,
decided early in a run with `max_time`, corrected a few times, and planned anew where a run is
resumed with another length.
"""

from __future__ import annotations

import math
from pathlib import Path

from ..config import TrainConfig
from ..runtime.counted import counted
from .checkpoint import TrainLength
from .evaluations import Evaluations
from .learner import Learner
from .run_display import RunDisplay
from .run_state import RunState, RunTime
from .setup import duration, number_of_steps
from .time_budget import TimeBudget, next_review, with_least_left

REPORTED_CHANGE = 0.02  # of the number of steps, when it is corrected


class RunLength:
    """Decides and corrects the number of steps of a run with `max_time`.

    Args:
        state: the progress of the run, which gets the number.
        learner: the model.
        evaluations: of the run; None without validation.
        budget: what has been measured.
        time: of the run.
        log: what is shown.
    """

    def __init__(
        self,
        state: RunState,
        learner: Learner,
        evaluations: Evaluations | None,
        budget: TimeBudget,
        time: RunTime,
        log: RunDisplay,
    ) -> None:
        self._state = state
        self._learner = learner
        self._config = learner.config
        self._processes = learner.processes
        self._evaluations = evaluations
        self._budget = budget
        self._time = time
        self._log = log

    def due(self) -> bool:
        """Whether to decide or correct the number of steps now."""
        if not self._budget.steps:
            return False  # resumed before an evaluation
        if self._state.total is None:
            return self._processes.from_main(self._budget.ready(self._state.seconds))
        return self._state.step == self._state.review

    def update(self) -> None:
        """Decides or corrects how many steps fit into `max_time`."""
        state = self._state
        budget = self._budget
        before = state.total
        has_teacher = self._learner.teacher is not None
        if has_teacher:
            budget.burn_in = self._config.unlabeled.burn_in
            budget.unlabeled = self._learner.unlabeled_seconds()
            self._time.count()

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
        images = self._config.evaluate_every * len(self._learner.data)
        return images / self._learner.images_per_step

    def _fitting(self) -> int:
        """How many steps fit into `max_time`."""
        state = self._state
        total = self._processes.from_main(
            self._budget.total(
                state.step,
                state.seconds,
                self._steps_per_evaluation,
                self._config.checkpoint_every,
            )
        )
        at_least = total if state.total is None else with_least_left(state.step, total)
        return min(at_least, self._config.steps or total)

    def _report(self, before: int | None, total: int) -> None:
        """Says how many steps fit, unless it has hardly changed."""
        if before is not None and abs(total - before) <= REPORTED_CHANGE * before:
            return
        was = "" if before is None else f" (was {before:,})"
        self._log.say(
            f"{counted(total, 'step')}{was} in {duration(self._budget.max_time)}, "
            f"{self._budget.step_seconds():.3g} s per step"
        )


def plan_anew(
    state: RunState,
    config: TrainConfig,
    before: TrainLength,
    num_images: int,
    images_per_step: int,
    out: Path,
) -> str:
    """Replaces the number of steps of a resumed run where its length has changed.

    Args:
        state: the progress of the run, which gets the number.
        config: with the present length.
        before: the length of the earlier session.
        num_images: in the training data.
        images_per_step: of all processes.
        out: the run folder, for messages.

    Returns:
        What changed, as text; empty if nothing did.

    Raises:
        ValueError: the run is already longer.
    """
    length = TrainLength.of(config)
    if length == before:
        return ""

    total = number_of_steps(config, num_images, images_per_step)
    if total is None:
        is_over = state.seconds >= (length.max_time or 0)
    else:
        is_over = state.step > total
    if is_over:
        epochs = state.step * images_per_step / num_images
        raise ValueError(
            f"cannot resume {out} for {length}: it has already trained "
            f"{counted(state.step, 'step')} ({counted(epochs, 'epoch')}, "
            f"{duration(state.seconds)}). Ask for more, or start a new run in another folder"
        )

    state.total = total
    state.review = None
    state.stopped = False
    state.evaluations_since_best = 0
    return (
        f", with another length: {length}, before {before}. The schedule is planned anew from here"
    )
