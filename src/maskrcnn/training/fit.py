"""The training loop. `train` is the whole of it; one optimizer step is in learner.py.

In: a `ModelConfig` (random or pretrained weights) or a `MaskRCNN` (its weights), annotated images, a `TrainConfig`. Out: a run folder and a `Run`.

    out/config.json            model, training and data settings        out/best.safetensors   the model with the best validation AP
    out/metrics.csv            a row a step                             out/last.safetensors   the newest model (averaged weights where ema > 0)
    out/tensorboard/           the same as events                       out/checkpoint.safetensors   all that a resumed run continues from
    out/curves.png             the same as an image        out/examples.png   the first images as the model sees them, with their truth

Exact resume: what a step does depends on the learner's tensors and the step's number alone (learner.py), and both are in the checkpoint.

Several processes (torchrun) average gradients and the normalisers of the losses, so that they do together what one does with all their images.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..annotations.problems import summary
from ..config import ModelConfig, TrainConfig
from ..settings import to_dict
from .checkpoint import claim_folder, fingerprint, write_checkpoint
from .curves import draw_curves
from .learner import Learner
from .log import RunLog, read_rows
from .processes import Processes
from .setup import check_settings, duration, first_line, make_network, run_length
from .time_budget import Pace, next_review, with_least_left
from .validate import evaluation_rows, validate, validation_columns

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..model.maskrcnn import MaskRCNN

MOST_TIME_SAVING = (
    0.05  # of the run: large checkpoints are written less often than `checkpoint_every` says
)
NOTED_CHANGE = 0.02  # of the number of steps, when it is corrected


@dataclass
class Run:
    """A finished training."""

    model: MaskRCNN
    """The best model by validation AP, the last one without validation; under torchrun the best one is in the main process only."""
    out: Path
    history: list[dict[str, float]]
    """The rows of metrics.csv that hold an evaluation; empty outside the main process."""
    best: dict[str, float] | None
    """Step and numbers of the best evaluation."""


@dataclass
class State:
    """Where a run stands, as plain data for the checkpoint."""

    step: int = 0
    total: int | None = None
    """Steps of the run; None while `max_time` is still being measured."""
    review: int | None = None
    """The step after which `total` is corrected next, in a run with `max_time`."""
    seconds: float = 0.0
    """Since the first step, in all sittings, evaluations and checkpoints included."""
    best: dict[str, float] | None = None
    evaluations_since_best: int = 0
    stopped: bool = False
    """Early, for want of progress."""
    log_bytes: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)


def train(
    model: ModelConfig | MaskRCNN,
    data: CocoDataset,
    validation: CocoDataset | None = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    out: str | Path = "runs/train",
    resume: bool = False,
    progress: bool = True,
    device: str | None = None,
    unlabeled: str | Path | Iterable[str | Path] | CocoDataset | None = None,
    pretrained: str | Path | None = None,
    clock: Callable[[], float] | None = None,
) -> Run:
    """Trains a model and keeps its best and its last state in a folder.

    Args:
        model: a configuration, or a model to continue from its own weights; it stays as it is.
        data: images to learn from; their categories are the model's.
        validation: images to judge by, every `config.evaluate_every` epochs and at the end.
        out: folder of the run, which all processes see.
        resume: go on from the checkpoint in `out`, to the same weights as without the interruption (bit for bit on a CPU with as many threads);
            from the beginning where there is none.
        progress: show what is going on.
        device: such as "cpu" or "cuda"; a GPU where there is one by default.
        unlabeled: images without annotations to learn from as well (a folder, files): what the averaged model is sure of is taught. Those that
            `data` and `validation` hold are left out. See `config.unlabeled`, and teacher.py for what is done.
        pretrained: what a configuration starts from: the name of an ImageNet trunk, or name, file or run folder of a detector, of which all that fits
            is kept; None = random weights. It is recorded in the run's config.json, with what did not fit.
        clock: what measures time, in seconds: `time.process_time` counts this process's work, whatever else the machine does.

    Raises:
        ValueError: `out` holds a run and `resume` is False; settings or data differ from those of the run to resume; categories differ.
        NonFiniteLossError: the training diverged, or an image breaks it.
    """
    from .unlabeled import open_unlabeled

    processes = Processes.start(device)
    images = open_unlabeled(unlabeled, data, validation) if unlabeled is not None else None
    with contextlib.closing(
        Trainer(
            model,
            data,
            validation,
            config,
            Path(out),
            processes,
            resume,
            progress,
            images,
            pretrained,
            clock,
        )
    ) as trainer:
        trainer.draw_examples()
        while not trainer.finished:
            row = trainer.step()
            if trainer.length_due():
                row |= trainer.fix_length()
            if trainer.evaluation_due and "val_loss" not in row:
                row |= trainer.evaluate()
            trainer.log.row(row, trainer.state.total)
            if trainer.checkpoint_due or "val_loss" in row:
                trainer.save()
        return trainer.result()


class Trainer:
    """All that takes part in a run, and what is done with it."""

    def __init__(
        self,
        model: ModelConfig | MaskRCNN,
        data: CocoDataset,
        validation: CocoDataset | None,
        config: TrainConfig,
        out: Path,
        processes: Processes,
        resume: bool,
        progress: bool,
        unlabeled: CocoDataset | None = None,
        pretrained: str | Path | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        check_settings(config, data, unlabeled)
        self.config, self.data, self.validation, self.out, self.processes = (
            config,
            data,
            validation,
            out,
            processes,
        )
        self.clock = clock or time.monotonic
        start = make_network(model, data, validation, config, pretrained)
        self.learner = Learner(start.network, data, config, processes, unlabeled, self.clock)
        self.images_per_step = self.learner.images_per_step
        self.state = State(total=run_length(config, len(data), self.images_per_step))
        self.settings = {
            "model": to_dict(start.network.config),
            "train": to_dict(config),
            "processes": processes.world,
        }
        self.settings["pretrained"] = start.record
        parts = {"data": data, "validation": validation, "unlabeled": unlabeled}
        self.settings |= {
            name: fingerprint(part) for name, part in parts.items() if part is not None
        }
        found = claim_folder(out, self.settings, resume, processes)
        if found:
            tensors, state = found
            self.state = State(**state)
            self.learner.restore(tensors, self.state.scaler)
        self.pace = Pace(config.max_time or math.inf)
        self.saved_at, self.asides = self.clock(), {}
        self.log = self._log(progress, resumed=bool(found))
        self.log.say(first_line(self.state.total, data, config, processes, out))
        self.log.say(f"starts from {start}")
        for line in dict.fromkeys(
            summary(part.name, part.warnings)
            for part in parts.values()
            if part is not None and part.warnings
        ):  # once of a file
            self.log.say(f"{line}; maskrcnn check lists them")
        if self.learner.teacher:
            self.log.say(self.learner.teacher.plan(self.state.total))
        if resume:
            self.log.say(
                f"resumed after step {self.state.step}"
                if found
                else f"no checkpoint in {out}: starting from the beginning"
            )

    def draw_examples(self) -> None:
        """Writes examples.png before the first step of a run."""
        if self.processes.main and self.state.step == 0:
            from .examples import draw_examples

            draw_examples(self.data, self.learner.model.config, self.config).save(
                self.out / "examples.png"
            )

    def step(self) -> dict[str, float]:
        """One optimizer step; its numbers by column."""
        start, state = self.clock(), self.state
        row = self.learner.step(state.step, state.total)
        seconds = self.clock() - start
        self.pace.steps.append(seconds)
        state.step += 1
        state.seconds += seconds
        row |= {
            "step": state.step,
            "epoch": state.step * self.images_per_step / len(self.data),
            "time": state.seconds,
        }
        row |= {"images_per_second": self.images_per_step / seconds} | self.asides
        self.asides = {}
        return row

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.state.stopped or (
            self.state.total is not None and self.state.step >= self.state.total
        )

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation belongs to the step just done."""
        every, images = (
            self.config.evaluate_every * len(self.data),
            self.state.step * self.images_per_step,
        )
        return self.validation is not None and (
            self.finished or images // every > (images - self.images_per_step) // every
        )

    @property
    def checkpoint_due(self) -> bool:
        """Whether the run is at its end or enough time has passed."""
        every = max(self.config.checkpoint_every, self.pace.checkpoint / MOST_TIME_SAVING)
        return self.finished or self.clock() - self.saved_at > every

    def length_due(self) -> bool:
        """Whether the number of steps of a run with `max_time` can be decided now, or is to be corrected."""
        if self.state.total is None:
            return self.processes.from_main(self.pace.ready(self.state.seconds))
        return self.state.step == self.state.review

    def fix_length(self) -> dict[str, float]:
        """Decides how many steps fit into `max_time`, or corrects it; where evaluations lie ahead, one is done to see how long it takes."""
        state, pace, between = (
            self.state,
            self.pace,
            self.config.evaluate_every * len(self.data) / self.images_per_step,
        )
        first, teaches = state.total is None, self.learner.teacher is not None
        if teaches:
            start = self.clock()
            pace.burn_in, pace.lesson = self.config.unlabeled.burn_in, self.learner.lesson_seconds()
            state.seconds += self.clock() - start

        def fitting() -> int:
            total = self.processes.from_main(
                pace.total(state.step, state.seconds, between, self.config.checkpoint_every)
            )
            return min(
                total if first else with_least_left(state.step, total), self.config.steps or total
            )

        row = (
            self.evaluate()
            if self.validation is not None and not pace.evaluation and fitting() > between
            else {}
        )
        if first or pace.known:
            before, state.total = state.total, fitting()
            if before is None or abs(state.total - before) > NOTED_CHANGE * before:
                was = "" if before is None else f", not {before}"
                self.log.say(
                    f"{state.total} steps{was} fit into {duration(pace.max_time)}, {pace.step_seconds():.3g} s each"
                )
        assert state.total is not None
        state.review = (
            None if teaches else next_review(state.step, state.total)
        )  # with lessons, the steps to come are not those measured
        self.saved_at = -math.inf  # so that the number is on the disk before the next step
        return row

    def evaluate(self) -> dict[str, float]:
        """Judges the averaged weights, keeps them if they are the best so far; the numbers by column."""
        assert self.validation is not None
        start, state = self.clock(), self.state
        numbers = validate(self.learner.averaged, self.validation, self.config, self.processes)
        if state.best is None or numbers["val/AP"] > state.best["val/AP"]:
            state.best, state.evaluations_since_best = {"step": state.step, **numbers}, 0
            self._keep("best.safetensors")
        else:
            state.evaluations_since_best += 1
        state.stopped = (
            self.config.patience is not None
            and state.evaluations_since_best >= self.config.patience
        )
        self.pace.evaluation = self.clock() - start
        state.seconds += self.pace.evaluation
        parts = ", ".join(
            f"{name.removeprefix('val/')} {value:.3f}"
            for name, value in numbers.items()
            if name.startswith("val/")
        )
        self.log.say(
            f"step {state.step}, validation: loss {numbers['val_loss']:.3f}, {parts} ({duration(self.pace.evaluation)})"
        )
        if state.stopped:
            self.log.say(f"stopped: no better AP in {self.config.patience} evaluations")
        return numbers | {"evaluation_seconds": self.pace.evaluation}

    def save(self) -> None:
        """Writes the newest model and the checkpoint."""
        start = self.clock()
        if self.processes.main:
            self._keep("last.safetensors")
            self.state.log_bytes, self.state.scaler = (
                self.log.length(),
                self.learner.scaler.state_dict(),
            )
            write_checkpoint(
                self.out / "checkpoint.safetensors",
                self.learner.tensors(),
                {"state": asdict(self.state), "settings": self.settings},
            )
        self.saved_at = self.clock()
        self.pace.checkpoint = self.saved_at - start
        self.state.seconds += self.pace.checkpoint
        self.asides["checkpoint_seconds"] = self.pace.checkpoint

    def _keep(self, name: str) -> None:
        """Writes the averaged weights as a model file."""
        from ..weights.load import save

        if self.processes.main:
            save(
                self.learner.averaged,
                self.out / name,
                info={"step": self.state.step, "best": self.state.best},
            )

    def result(self) -> Run:
        """The best model and the story of its training, with an image of it in the folder."""
        from ..weights.load import load

        model, rows = self.learner.averaged.eval(), []
        if self.processes.main:
            rows = read_rows(self.out / "metrics.csv")
            draw_curves(rows, self.out / "curves.png")
            if self.state.best and self.validation:
                model = load(self.out / "best.safetensors", device=str(self.processes.device))
        best = (
            f", best AP {self.state.best['val/AP']:.3f} after step {self.state.best['step']}"
            if self.state.best
            else ""
        )
        self.log.say(
            f"done: {self.state.step} steps in {duration(self.state.seconds)}{best}; {self.out}"
        )
        return Run(model, self.out, list(evaluation_rows(rows)), self.state.best)

    def close(self) -> None:
        """Ends the loader's processes and closes the log."""
        self.learner.close()
        self.log.close()

    def _log(self, progress: bool, resumed: bool) -> RunLog:
        columns = [
            "step",
            "epoch",
            "time",
            *self.learner.columns,
            "images_per_second",
            "checkpoint_seconds",
        ]
        columns += (
            [*validation_columns(self.learner.model.config), "evaluation_seconds"]
            if self.validation
            else []
        )
        return RunLog(
            self.out if self.processes.main else None,
            columns,
            progress=progress,
            tensorboard=self.config.tensorboard,
            resume_at=self.state.log_bytes if resumed else None,
            first_step=self.state.step,
            total=self.state.total,
        )
