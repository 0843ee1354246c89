"""What a time budget can reach, measured before the run begins: `forecast`.

In: candidates of the recipe, images, the end of the time. Out: a `Forecast`: the recipe to train,
how many of its steps fit, and the memory at the peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..recipe.recipe import Candidate, Reason, Recipe
from ..runtime.counted import counted
from ..runtime.keep_memory import return_unused_memory
from .setup import duration
from .time_budget import EVALUATION_SHARE
from .trial import LONGEST_TRIAL, TRIAL_SHARE, Choice, choose_candidate, step_seconds

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from .processes import Processes

OTHER_SHARE = 0.05  # of the time: setting up, checkpoints, curves
HOPELESS_SHARE = 0.2  # of enough steps; a run with fewer usually finds nothing
ROUND_TIMES = (1, 2, 3, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 1440)  # min


@dataclass(frozen=True)
class Forecast:
    """What fits into the time. `print` shows it."""

    choice: Choice
    steps: int
    """How many steps fit, about."""
    max_time: float
    """Seconds of the whole command."""
    prepared: float
    """Seconds that were spent before the training."""
    step_bytes: float = 0.0
    """By how much steps of the candidate made this process grow, where that was measured: more than
    their tensors, because kept memory becomes fragmented."""

    @property
    def is_hopeless(self) -> bool:
        """Whether the steps are so few that the result would be useless."""
        return self.steps < HOPELESS_SHARE * self.choice.candidate.enough

    @property
    def recipe(self) -> Recipe:
        """The chosen recipe, with the reason for the choice."""
        recipe = self.choice.candidate.recipe
        reason = Reason("steps in max_time", f"about {self.steps:,}", self.why)
        return replace(recipe, reasons=(reason, *recipe.reasons))

    @property
    def why(self) -> str:
        """The reason for the choice of the candidate."""
        choice = self.choice
        text = f"{choice.candidate.name}: {choice.step_seconds:.2g} s per step, measured"
        for candidate, seconds in choice.rejected:
            text += f"; {candidate.name} takes {seconds:.2g} s"
        goal = f"{counted(choice.candidate.enough, 'step')} give a good result"
        if choice.suffices:
            return f"{text}; {goal}"
        return f"{text}; {goal}, fewer a rough one"

    @property
    def refusal(self) -> str:
        """Why the budget is hopeless, and what to do."""
        candidate = self.choice.candidate
        start = "from random weights" if candidate.kind == "none" else "even from pretrained ones"
        share = self.steps * self.choice.step_seconds / self.max_time
        seconds = candidate.enough * self.choice.step_seconds / max(share, 0.5)

        advice = [f"use --max-time {_round_time(seconds)}"]
        if candidate.kind == "none":
            advice.append("start from a detector (--pretrained)")
        fewest = math.ceil(HOPELESS_SHARE * candidate.enough)

        return (
            f"max_time {duration(self.max_time)}: "
            f"expected time for at least {counted(fewest, 'step')}, "
            f"got time for about {self.steps}, too few {start}. "
            f"A step takes {self.choice.step_seconds:.2g} s, and {duration(self.prepared)} are "
            f"spent. Suggestion: {', '.join(advice)}, or train anyway (--anyway)"
        )

    def __str__(self) -> str:
        choice = self.choice
        text = (
            f"about {counted(self.steps, 'step')} of {choice.step_seconds:.2g} s in "
            f"{duration(self.max_time)}; {duration(self.prepared)} are spent"
        )
        if not choice.suffices:
            text += f". {choice.candidate.enough:,} steps give a good result; expect a rough one"
        return text


def forecast(
    candidates: Sequence[Candidate],
    data: CocoDataset,
    max_time: float,
    *,
    validates: bool,
    started: float,
    clock: Callable[[], float],
    processes: Processes,
) -> Forecast:
    """Times steps of candidates and chooses the one to train.

    Args:
        candidates: the best first.
        data: the training images.
        max_time: seconds of the whole command.
        validates: whether the run evaluates, which takes a share of the time.
        started: the time, by `clock`, from which `max_time` counts.
        clock: returns the time in seconds.
        processes: that train together, and measure together. The main process's times count.
    """

    from ..recipe.memory_estimate import program_bytes

    def left() -> float:
        """Seconds for steps."""
        share = 1 - OTHER_SHARE - (EVALUATION_SHARE if validates else 0)
        return processes.from_main(max(0.0, share * max_time - (clock() - started)))

    longest = min(LONGEST_TRIAL, TRIAL_SHARE * max_time)

    grown: dict[str, float] = {}

    def cost(candidate: Candidate) -> float:
        recipe = candidate.recipe
        before = program_bytes()
        seconds = step_seconds(
            recipe.model, data, recipe.training, processes=processes, clock=clock, longest=longest
        )
        grown[candidate.name] = program_bytes() - before
        return_unused_memory()
        return seconds

    choice = choose_candidate(candidates, left(), cost)
    prepared = processes.from_main(clock() - started)
    step_bytes = grown[choice.candidate.name]
    return Forecast(choice, choice.steps_in(left()), max_time, prepared, step_bytes)


def _round_time(seconds: float) -> str:
    """At least this time, as `--max-time` takes it."""
    minutes = next((m for m in ROUND_TIMES if 60 * m >= seconds), math.ceil(seconds / 60))
    return f"{minutes / 60:g}h" if minutes >= 60 else f"{minutes}m"
