"""What a training step costs on this machine, and the choice of a candidate by it.

In: candidates, the best first, and the seconds that training may take. Out: the first of them for
which the time suffices, with the seconds of its steps: a few real steps of a network that is thrown
away. `plan_training` and the demo plan their time with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from ..config import ModelConfig, TrainConfig
from ..recipe.recipe import Candidate
from .learner import Learner
from .processes import Processes
from .setup import make_network
from .validate import validate

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset

WARM_UP = 2  # steps: kernels are compiled, memory is allocated
TIMED = 4  # steps
# Steps that are timed however short the budget is, where they are quick: of three, the median is
# not the one that a busy machine has held up.
FEWEST_TIMED = 3
QUICK_STEP = 1.0  # seconds
VALIDATED = 6  # images
LONGEST_TRIAL = 15.0  # seconds, after which a trial ends with the steps it has
# Seconds of a step after which a trial may end without a warm step: warming up takes a few seconds
# at most, which hardly matter in a slow step.
SLOW_STEP = 5.0
TRIAL_SHARE = 0.03  # of the time for training, after which a trial ends likewise
# A larger candidate may be this much cheaper than its arithmetic says: parts of a step cost the
# same for all. Only candidates that this could make affordable are tried.
LEAST_SHARE_OF_WORK = 0.6


@dataclass(frozen=True)
class Choice:
    """The candidate to train, and what its steps cost here."""

    candidate: Candidate
    step_seconds: float
    suffices: bool
    """Whether the time suffices for `candidate.enough` steps."""
    rejected: tuple[tuple[Candidate, float], ...] = ()
    """Better candidates that are too expensive, with the seconds of a step."""

    def steps_in(self, seconds: float) -> int:
        """How many steps fit into a time."""
        return max(0, int(seconds / self.step_seconds))


def choose_candidate(
    candidates: Sequence[Candidate], seconds: float, cost: Callable[[Candidate], float]
) -> Choice:
    """The first candidate whose `enough` steps fit, or the one that gets nearest to them.

    The last one, which should be the cheapest, is timed first. Others are timed only if they may be
    affordable, so that a slow machine does not spend its time on them.

    Args:
        candidates: the best first.
        seconds: what training may take.
        cost: times a candidate: seconds of one step.
    """
    cheapest = candidates[-1]
    least = cost(cheapest)
    timed: list[tuple[Candidate, float]] = []

    for candidate in candidates[:-1]:
        expected = LEAST_SHARE_OF_WORK * least * candidate.work / cheapest.work
        if expected * candidate.enough > seconds:
            continue
        measured = cost(candidate)
        if measured * candidate.enough <= seconds:
            return Choice(candidate, measured, True, tuple(timed))
        timed.append((candidate, measured))

    # None has enough steps, unless the cheapest one has.
    if least * cheapest.enough <= seconds:
        return Choice(cheapest, least, True, tuple(timed))
    timed.append((cheapest, least))
    nearest = min(timed, key=lambda each: each[0].enough * each[1])
    others = tuple(each for each in timed if each is not nearest)
    return Choice(*nearest, suffices=False, rejected=others)


def step_seconds(
    model: ModelConfig,
    data: CocoDataset,
    config: TrainConfig,
    *,
    device: str | None = None,
    processes: Processes | None = None,
    clock: Callable[[], float] = time.monotonic,
    longest: float = LONGEST_TRIAL,
) -> float:
    """Seconds of an optimizer step, from a few real steps of a network that is thrown away.

    Args:
        model: the network.
        data: images to train on; a few suffice.
        config: settings of the training.
        device: such as "cpu" or "cuda"; None = a GPU if there is one.
        processes: that measure together, instead of this one on `device`.
        clock: returns the time in seconds.
        longest: seconds after which the trial ends with the steps it has: at least three after the
            warm-up, one where a step takes a second, or the second step where steps are slow.
    """
    processes = processes or Processes.alone(device)
    network = make_network(model, data, None, config, None).network
    learner = Learner(network, data, config, processes, None, clock)
    seconds: list[float] = []
    begin = clock()

    with contextlib.closing(learner):
        for number in range(WARM_UP + TIMED):
            start = clock()
            learner.step(number, None)
            seconds.append(clock() - start)
            fewest = FEWEST_TIMED if seconds[-1] < QUICK_STEP else 1
            is_slow = number > 0 and seconds[-1] > SLOW_STEP
            is_known = len(seconds) >= WARM_UP + fewest or is_slow
            if processes.from_main(is_known and clock() - begin > longest):
                break
    return processes.from_main(median(seconds[min(WARM_UP, len(seconds) - 1) :]))


def image_seconds(
    model: ModelConfig,
    data: CocoDataset,
    config: TrainConfig,
    *,
    device: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """Seconds that a validation takes per image, from a few images and an untrained network.

    An untrained network makes as many detections as it may; a trained one usually makes fewer and
    takes less time.

    Args:
        model: the network.
        data: images to validate on; the first few are used.
        config: settings of the training.
        device: such as "cpu" or "cuda"; None = a GPU if there is one.
        clock: returns the time in seconds.
    """
    processes = Processes.alone(device)
    network = make_network(model, data, None, config, None).network.to(processes.device)
    seconds = 0.0

    for images in (data.subset(range(1)), data.subset(range(min(VALIDATED, len(data))))):
        start = clock()
        validate(network, images, config, processes)
        seconds = (clock() - start) / len(images)  # of the second pass; the first is a warm-up
    return seconds
