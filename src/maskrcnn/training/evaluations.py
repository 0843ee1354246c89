"""The evaluations of a run: when one is due, on which images, and which model is the best.

In: a learner and validation images. Out: numbers by column; best.safetensors; the end of a run that
no longer improves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..runtime.counted import counted
from .learner import Learner
from .run_display import RunDisplay
from .run_files import RunFiles
from .run_state import RunState, RunTime
from .setup import duration
from .time_budget import EVALUATION_SHARE, TimeBudget
from .unreadable import UnreadableImages
from .validate import Metric, validate

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset

SAMPLED = 3  # validation images, to estimate the time of an evaluation


class Evaluations:
    """Evaluates the averaged weights of a run, and keeps the best model.

    Args:
        images: to validate on.
        learner: the model.
        state: the progress of the run.
        files: the files of the run.
        budget: gets the seconds of an evaluation.
        time: of the run.
        log: what is shown.
        unreadable: gets the validation images that cannot be read.
        metrics: numbers of the user's own, by name.
    """

    def __init__(
        self,
        images: CocoDataset,
        learner: Learner,
        state: RunState,
        files: RunFiles,
        budget: TimeBudget,
        time: RunTime,
        log: RunDisplay,
        unreadable: UnreadableImages,
        metrics: Mapping[str, Metric],
    ) -> None:
        self._images = images
        self._learner = learner
        self._config = learner.config
        self._processes = learner.processes
        self._state = state
        self._files = files
        self._budget = budget
        self._time = time
        self._log = log
        self._unreadable = unreadable
        self._metrics = metrics

    @property
    def due(self) -> bool:
        """Whether an evaluation follows the step just done."""
        if self._state.pending:
            return True
        per_step = self._learner.images_per_step
        every = self._config.evaluate_every * len(self._learner.data)
        images = self._state.step * per_step
        return self._state.finished or images // every > (images - per_step) // every

    def run(self) -> dict[str, float]:
        """Evaluates the averaged weights and keeps them if they are the best so far.

        Returns:
            The numbers by column.
        """
        self._time.count()
        images = self._images
        if self._state.validated is not None and self._state.validated < len(images):
            images = _spread(images, self._state.validated)
        # Every image counts twice: the loss, and the predictions.
        length = 2 * -(-len(images) // self._processes.world)
        with self._log.stage("validating", length) as advance:
            numbers = self._validate(images, advance, self._metrics)
        self._compare(numbers)

        seconds = self._time.count()
        self._budget.evaluation = seconds
        self._report(numbers, seconds)
        return numbers | {"evaluation_seconds": seconds}

    def plan(self, evaluations: int) -> None:
        """Times the validation of a few images, and limits their number if the time is short.

        Args:
            evaluations: expected in the run.
        """
        one = _spread(self._images, 1)  # the first validation is slower: libraries load
        few = _spread(self._images, SAMPLED)
        seconds = 0.0
        with self._log.stage("timing the validation", 2 * (len(one) + len(few))) as advance:
            for part in (one, few):
                self._time.count()
                self._validate(part, advance, {})
                seconds = self._processes.from_main(self._time.count() / len(part))

        state = self._state
        if state.validated is None:
            images = len(self._images)
            state.validated = self._budget.images_to_validate(images, seconds, evaluations)
        self._budget.evaluation = state.validated * seconds
        self._log.say(self._planned(seconds, evaluations))

    def _planned(self, image_seconds: float, evaluations: int) -> str:
        """How many images a run with a time budget validates on, and why."""
        images = len(self._images)
        count = self._state.validated or images
        max_time = self._budget.max_time
        when = "each time" if evaluations > 1 else "at the end"
        each = f"{duration(count * image_seconds)} {when}"
        if count == images:
            every = "the image" if images == 1 else f"all {images:,} images"
            return f"validates on {every}: {each}"

        share = evaluations * count * image_seconds / max_time
        text = (
            f"validates on {count:,} of {counted(images, 'image')}, spread over the set: {each}; "
            f"all would take {duration(images * image_seconds)} of {duration(max_time)}"
        )
        if share > EVALUATION_SHARE:
            text += f". That is {share:.0%} of the time, but fewer images would say little"
        return text

    def _validate(
        self,
        images: CocoDataset,
        advance: Callable[[int], None],
        metrics: Mapping[str, Metric],
    ) -> dict[str, float]:
        """The numbers of the averaged weights on some of the validation images."""
        return validate(
            self._learner.averaged,
            images,
            self._config,
            self._processes,
            advance,
            note_unreadable=self._unreadable.note,
            metrics=metrics,
            training=self._learner.data,
        )

    def _compare(self, numbers: dict[str, float]) -> None:
        """Keeps the model if it is the best, and ends a run that does not improve any more."""
        state = self._state
        if state.best is None or numbers["val/AP"] > state.best["val/AP"]:
            state.best = {"step": state.step, **numbers}
            state.evaluations_since_best = 0
            self._files.keep("best.safetensors")
        else:
            state.evaluations_since_best += 1
        patience = self._config.patience
        state.stopped = patience is not None and state.evaluations_since_best >= patience

    def _report(self, numbers: dict[str, float], seconds: float) -> None:
        parts = ", ".join(
            f"{name.removeprefix('val/')} {value:.3f}"
            for name, value in numbers.items()
            if name.startswith("val/")
        )
        self._log.say(
            f"step {self._state.step}, validation: loss {numbers['val_loss']:.3f}, {parts} "
            f"({duration(seconds)})"
        )
        if self._state.stopped:
            in_vain = counted(self._state.evaluations_since_best, "evaluation")
            self._log.say(f"stopped early: AP did not improve in {in_vain}")


def _spread(data: CocoDataset, count: int) -> CocoDataset:
    """At most `count` images, at equal distances."""
    count = min(count, len(data))
    return data.subset([i * len(data) // count for i in range(count)])
