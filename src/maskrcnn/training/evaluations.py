"""The evaluations of a run: when one is due, on which images, and which model is the best.

In: a learner and validation images. Out: numbers by column; best.safetensors; the end of a run that
no longer improves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..runtime.counted import counted
from .run_files import RunFiles
from .run_parts import RunParts
from .setup import duration
from .time_budget import EVALUATION_SHARE
from .validate import Metric, validate

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset

SAMPLED = 3  # validation images, to estimate the time of an evaluation


class Evaluations:
    """Evaluates the averaged weights of a run, and keeps the best model.

    Args:
        run: the parts of the run, with validation images.
        files: the files of the run.
    """

    def __init__(self, run: RunParts, files: RunFiles) -> None:
        self._run = run
        self._files = files
        self._images = run.sets["validation"]

    @property
    def due(self) -> bool:
        """Whether an evaluation follows the step just done."""
        if self._run.state.pending:
            return True
        per_step = self._run.learner.images_per_step
        every = self._run.config.evaluate_every * len(self._run.data)
        images = self._run.state.step * per_step
        return self._run.state.finished or images // every > (images - per_step) // every

    def run(self) -> dict[str, float]:
        """Evaluates the averaged weights and keeps them if they are the best so far.

        Returns:
            The numbers by column.
        """
        self._run.time.count()
        images = self._images
        if self._run.state.validated is not None and self._run.state.validated < len(images):
            images = _spread(images, self._run.state.validated)
        # Every image counts twice: the loss, and the predictions.
        length = 2 * -(-len(images) // self._run.processes.world)
        with self._run.log.stage("validating", length) as advance:
            numbers = self._validate(images, advance, self._run.metrics)
        self._compare(numbers)

        seconds = self._run.time.count()
        self._run.budget.evaluation = seconds
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
        with self._run.log.stage("timing the validation", 2 * (len(one) + len(few))) as advance:
            for part in (one, few):
                self._run.time.count()
                self._validate(part, advance, {})
                seconds = self._run.processes.from_main(self._run.time.count() / len(part))

        state = self._run.state
        if state.validated is None:
            images = len(self._images)
            state.validated = self._run.budget.images_to_validate(images, seconds, evaluations)
        self._run.budget.evaluation = state.validated * seconds
        self._run.log.say(self._planned(seconds, evaluations))

    def _planned(self, image_seconds: float, evaluations: int) -> str:
        """How many images a run with a time budget validates on, and why."""
        images = len(self._images)
        count = self._run.state.validated or images
        max_time = self._run.budget.max_time
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
            self._run.learner.averaged,
            images,
            self._run.config,
            self._run.processes,
            advance,
            note_unreadable=self._run.unreadable["validation"].note,
            metrics=metrics,
            training=self._run.data,
        )

    def _compare(self, numbers: dict[str, float]) -> None:
        """Keeps the model if it is the best, and ends a run that does not improve any more."""
        state = self._run.state
        if state.best is None or numbers["val/AP"] > state.best["val/AP"]:
            state.best = {"step": state.step, **numbers}
            state.evaluations_since_best = 0
            self._files.keep("best.safetensors")
        else:
            state.evaluations_since_best += 1
        patience = self._run.config.patience
        state.stopped = patience is not None and state.evaluations_since_best >= patience

    def _report(self, numbers: dict[str, float], seconds: float) -> None:
        parts = ", ".join(
            f"{name.removeprefix('val/')} {value:.3f}"
            for name, value in numbers.items()
            if name.startswith("val/")
        )
        self._run.log.say(
            f"step {self._run.state.step}, validation: loss {numbers['val_loss']:.3f}, {parts} "
            f"({duration(seconds)})"
        )
        if self._run.state.stopped:
            in_vain = counted(self._run.state.evaluations_since_best, "evaluation")
            self._run.log.say(f"stopped early: AP did not improve in {in_vain}")


def _spread(data: CocoDataset, count: int) -> CocoDataset:
    """At most `count` images, at equal distances."""
    count = min(count, len(data))
    return data.subset([i * len(data) // count for i in range(count)])
