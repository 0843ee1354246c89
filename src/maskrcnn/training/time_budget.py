"""How many steps fit into a given time: decided from the steps measured so far, and corrected a few
times during the run.

In: seconds of each step, of an evaluation, of a checkpoint. Out: the number of steps of the run,
and the number of validation images, which limits what evaluations take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

# The number of steps is decided after this share of the time.
# The learning rate is at or near its peak until then.
MEASURED_SHARE = 0.10
# It is decided after this share even if fewer than FEWEST_STEPS steps were measured.
LATEST_SHARE = 0.25
# The number is corrected after these shares of the steps: the first steps are slower, and other
# work on the machine comes and goes.
REVIEWED_SHARES = (0.25, 0.5, 0.75, 0.9)
LEAST_LEFT = 0.05  # of the steps, however late it is: the learning rate must decay
# Evaluations take at most this share of the time. Where all validation images would take more, the
# run validates on fewer, spread over the set.
EVALUATION_SHARE = 0.15
FEWEST_VALIDATED = 4  # images, however slow they are
FIRST_STEPS = 3  # not counted: loaders start, memory is allocated
FEWEST_STEPS = 12  # measured before a typical step is known


@dataclass
class TimeBudget:
    """What has been measured since the process began."""

    max_time: float
    """Seconds of the whole run."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each step."""
    evaluation: float = 0.0
    """Seconds of the last evaluation, or an estimate before the first one; 0 = there are none."""
    checkpoint: float = 0.0
    """Seconds of the last checkpoint."""
    unlabeled: float = 0.0
    """Extra seconds of a step that also trains on unlabeled images."""
    burn_in: float = 0.0
    """Share of the run before steps train on unlabeled images."""

    def ready(self, seconds: float) -> bool:
        """Whether the number of steps can be decided, `seconds` after the first step began."""
        return seconds > self.max_time * (MEASURED_SHARE if self.known else LATEST_SHARE)

    def step_seconds(self) -> float:
        """Seconds of a typical step.

        This is the mean of the later half without its fastest and slowest tenth, because a busy
        machine occasionally stalls.
        """
        counted = sorted(self.steps[max(FIRST_STEPS, len(self.steps) // 2) :] or self.steps[-1:])
        cut = len(counted) // 10
        return float(np.mean(counted[cut : len(counted) - cut]))

    @property
    def known(self) -> bool:
        """Whether enough steps were measured to know a typical one."""
        return len(self.steps) >= FIRST_STEPS + FEWEST_STEPS

    def total(
        self, step: int, seconds: float, steps_per_evaluation: float, checkpoint_every: float
    ) -> int:
        """Number of steps of the whole run that fit into `max_time`.

        Evaluations and checkpoints ahead are counted, also those at the end.

        Args:
            step: steps done so far.
            seconds: time spent so far.
            steps_per_evaluation: steps between two evaluations; infinity = none.
            checkpoint_every: seconds between two checkpoints.
        """
        each = self.step_seconds() * (1 + self.checkpoint / max(checkpoint_every, 1e-9))
        left = self.max_time - seconds - self.evaluation - self.checkpoint

        def evaluations(total: int) -> int:
            by_end = math.floor((total - 1) / steps_per_evaluation)
            return max(0, by_end - math.floor(step / steps_per_evaluation))

        def cost(total: int) -> float:
            with_unlabeled = total - max(step, math.ceil(self.burn_in * total))
            return (
                (total - step) * each
                + with_unlabeled * self.unlabeled
                + evaluations(total) * (self.evaluation + self.checkpoint)
            )

        total = step + max(0, math.floor(left / each))
        while total > step and cost(total) > left:
            total -= 1
        return total

    def images_to_validate(self, images: int, image_seconds: float, evaluations: int) -> int:
        """How many of the validation images to use, so that evaluations take a small share.

        Args:
            images: in the validation set.
            image_seconds: that an evaluation takes for one image.
            evaluations: expected in the run.
        """
        most = EVALUATION_SHARE * self.max_time / max(evaluations, 1)
        return min(images, max(FEWEST_VALIDATED, int(most / max(image_seconds, 1e-9))))


def next_review(step: int, total: int) -> int | None:
    """The step after which the number of steps is corrected next; None after the last review."""
    reviews = (math.ceil(share * total) for share in REVIEWED_SHARES)
    return next((review for review in reviews if review > step), None)


def with_least_left(step: int, total: int) -> int:
    """A corrected number of steps, but at least enough for the learning rate to decay."""
    return max(total, math.ceil(step / (1 - LEAST_LEFT)))
