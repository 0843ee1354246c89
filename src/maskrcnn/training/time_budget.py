"""How many steps fit into a given time: decided from the steps measured so far, and corrected a few times on the way.

In: seconds of each step, of an evaluation, of a checkpoint. Out: the number of steps of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

MEASURED_SHARE = 0.10  # of the time goes by before the length is decided; the schedule is at or near its peak rate until then
REVIEWED_SHARES = (
    0.25,
    0.5,
    0.75,
    0.9,
)  # of the steps, after which their number is corrected: the first ones are slower, other work comes and goes
LEAST_LEFT = 0.05  # of the steps, however late it is: the learning rate must come down
FIRST_STEPS = 3  # are not counted: loaders start, memory is allocated
FEWEST_STEPS = 12  # measured, unless they would take more than a quarter of the time


@dataclass
class Pace:
    """What has been measured since the process began."""

    max_time: float
    steps: list[float] = field(default_factory=list)
    evaluation: float = 0.0
    checkpoint: float = 0.0
    """Seconds of the last one of each."""
    lesson: float = 0.0
    burn_in: float = 0.0
    """Seconds that a step takes longer from this part of the run on, for images without annotations."""

    def ready(self, seconds: float) -> bool:
        """Whether enough is known, `seconds` after the first step began."""
        return seconds > self.max_time * (MEASURED_SHARE if self.known else 0.25)

    def step_seconds(self) -> float:
        """A typical step: the mean of the later half without its fastest and slowest tenth, because a busy machine stalls now and then."""
        counted = sorted(self.steps[max(FIRST_STEPS, len(self.steps) // 2) :] or self.steps[-1:])
        cut = len(counted) // 10
        return float(np.mean(counted[cut : len(counted) - cut]))

    @property
    def known(self) -> bool:
        """Whether enough steps were measured for a typical one to be known."""
        return len(self.steps) >= FIRST_STEPS + FEWEST_STEPS

    def total(
        self, step: int, seconds: float, steps_per_evaluation: float, checkpoint_every: float
    ) -> int:
        """Steps of the whole run, of which `step` are done in `seconds`; evaluations before the last and checkpoints are paid from the time."""
        each, left = (
            self.step_seconds() * (1 + self.checkpoint / max(checkpoint_every, 1e-9)),
            self.max_time - seconds,
        )
        total = step + max(0, math.floor(left / each))

        def evaluations() -> int:
            return max(
                0,
                math.floor((total - 1) / steps_per_evaluation)
                - math.floor(step / steps_per_evaluation),
            )

        def lessons() -> int:
            return total - max(step, math.ceil(self.burn_in * total))

        while (
            total > step
            and (total - step) * each
            + lessons() * self.lesson
            + evaluations() * (self.evaluation + self.checkpoint)
            > left
        ):
            total -= 1
        return total


def next_review(step: int, total: int) -> int | None:
    """The step after which the length is corrected next."""
    return next(
        (review for share in REVIEWED_SHARES if (review := math.ceil(share * total)) > step), None
    )


def with_least_left(step: int, total: int) -> int:
    """Of a corrected length: no less than what lets the learning rate come down."""
    return max(total, math.ceil(step / (1 - LEAST_LEFT)))
