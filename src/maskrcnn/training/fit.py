"""The training loop, `train`; a single optimizer step is in learner.py.

In: a `ModelConfig` (with random or pretrained weights) or a `MaskRCNN` (with its own), annotated
images, a `TrainConfig`. Out: a `Run` and its folder:

    config.json              settings of model, training and data
    metrics.csv              one row per step
    tensorboard/             the same numbers as events
    curves.png               the same numbers as an image
    examples.png             the first augmented training images with their truth
    best.safetensors         the model with the best validation AP
    last.safetensors         the newest model (averaged weights where ema > 0)
    checkpoint.safetensors   the state that a resumed run continues from

Resuming is exact: a step depends on the learner's tensors and on the step's number alone
(learner.py), and the checkpoint holds both.

Ctrl-C and SIGTERM end a run after the step in progress, with a checkpoint. So does a callback that
asks for it (callback.py), and so do too many unreadable images (unreadable.py).

Several processes (torchrun) average gradients and the normalizers of the losses. Together they
compute what one process would compute with all their images.
"""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig, TrainConfig
from ..images.read import ImageError
from ..runtime.atomic_files import replacing, stating_what_is_safe
from ..runtime.counted import counted
from ..runtime.interruption import Interrupted, StopSignals
from ..runtime.keep_memory import return_unused_memory
from ..runtime.plain_data import PlainDict
from ..settings import to_dict
from .callback import ActiveRun, Callback, Callbacks, check_callbacks
from .checkpoint import (
    TrainLength,
    claim_folder,
    fingerprint,
    for_processes,
    read_session,
    refuse_other_processes,
    refuse_other_settings,
    write_checkpoint,
)
from .curves import draw_curves
from .learner import Learner
from .log import MetricsFile, TensorBoardLog, read_rows
from .process_watch import ProcessLostError
from .processes import Processes
from .run_display import RunDisplay
from .setup import (
    check_settings,
    duration,
    first_line,
    make_network,
    number_of_steps,
    warn_about_heads,
)
from .time_budget import EVALUATION_SHARE, TimeBudget, next_review, with_least_left
from .unreadable import UnreadableImages
from .validate import Metric, check_metrics, evaluation_rows, validate, validation_columns

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..augmentation.own_augmentation import Augmentation
    from ..model.maskrcnn import MaskRCNN

# Share of the run that saving may take: large checkpoints are written less often than
# `checkpoint_every` says.
MOST_TIME_SAVING = 0.05
TIDY_EVERY = 10.0  # seconds between returns of unused memory, which take 0.3 % of the time
REPORTED_CHANGE = 0.02  # of the number of steps, when it is corrected
STOPPING = "Stopping after this step, with a checkpoint. Ctrl-C again ends at once."
FROM_START = "so resume=True (--resume) starts the run from the beginning"
SAMPLED = 3  # validation images, to estimate the time of an evaluation


@dataclass
class Run:
    """A finished training run."""

    model: MaskRCNN
    """The best model by validation AP, or the last one without validation data. Under torchrun only
    the main process has the best one.
    """
    out: Path
    """The run folder."""
    history: list[dict[str, float]]
    """The rows of metrics.csv that hold an evaluation; empty outside the main process."""
    best: dict[str, float] | None
    """Step and numbers of the best evaluation."""
    skipped: list[str] = field(default_factory=list)
    """One line per image that could not be read during the run."""


@dataclass
class State:
    """The progress of a run, as plain data for the checkpoint."""

    step: int = 0
    total: int | None = None
    """Steps of the run; None in a run with `max_time` until they have been decided."""
    review: int | None = None
    """The step after which `total` is corrected next, in a run with `max_time`."""
    seconds: float = 0.0
    """Seconds of the run over all sessions: preparing, steps, evaluations and checkpoints."""
    validated: int | None = None
    """Validation images that are used, in a run whose time does not suffice for all."""
    pending: dict[str, float] = field(default_factory=dict)
    """The numbers of a step that is done and saved but not yet evaluated."""
    best: dict[str, float] | None = None
    evaluations_since_best: int = 0
    stopped: bool = False
    """Whether the run ended early because AP did not improve."""
    log_bytes: int = 0
    scaler: dict[str, float] = field(default_factory=dict)
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)
    """Images that could not be read: data set -> image id -> reason."""


def train(
    model: ModelConfig | MaskRCNN,
    data: CocoDataset | str | Path,
    *,
    val: CocoDataset | str | Path | None = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    out: str | Path = "runs/train",
    resume: bool = False,
    progress: bool = True,
    device: str | None = None,
    unlabeled: str | Path | Iterable[str | Path] | CocoDataset | None = None,
    pretrained: str | Path | None = None,
    clock: Callable[[], float] | None = None,
    started: float | None = None,
    callbacks: Sequence[Callback] = (),
    augmentation: Augmentation | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Run:
    """Trains a model and keeps its best and its last state in a folder.

    Args:
        model: a configuration, or a model whose own weights are trained further; the object itself
            is not modified.
        data: annotated training images, or what `load_dataset` reads; their categories are the
            model's, matched by name.
        val: images to validate on, every `config.evaluate_every` epochs and at the end. None trains
            without validation, and the last model is the result.
        config: length, learning rate, batch size, augmentation and all other settings of the
            training.
        out: folder of the run. Of several processes the main one alone reads and writes it.
        resume: continue from the checkpoint in `out`, or start from the beginning if there is none.
            The weights equal those of an uninterrupted run, bit for bit on a CPU with the same
            number of threads.
        progress: show progress and messages.
        device: such as "cpu" or "cuda"; None = a GPU if there is one.
        unlabeled: images without annotations to train on as well, as a folder, files or a data set.
            The averaged model makes pseudo-labels for them, see `config.unlabeled` and teacher.py.
            Images that are also in `data` or `val` are skipped.
        pretrained: initial weights for a configuration: the name of an ImageNet trunk, or the name,
            file or run folder of a detector, of which all weights that fit are kept. None = random
            weights. The run's config.json records the source and what did not fit.
        clock: returns the time in seconds, for `config.max_time`. `time.process_time` counts this
            process's own work, whatever else the machine does. None = wall-clock time.
        started: the time, by `clock`, from which `config.max_time` counts. None = now. Earlier, if
            preparing the run is part of the time.
        callbacks: follow the run: loggers such as `MLflowLog`, or objects of your own subclass of
            `Callback`.
        augmentation: random changes of your own to the annotated training images.
        metrics: numbers of your own for every evaluation, by name. Each function gets the
            detections, as a list of COCO results, and the validation images as a data set, and
            returns the value of the column val/NAME. The best model is still chosen by AP.

    Returns:
        The trained model and the numbers of its evaluations.

    Raises:
        ValueError: `out` holds a run and `resume` is False; settings or data differ from those of
            the run to resume; the categories differ; a setting is out of range.
        NonFiniteLossError: the training diverged, or an image causes a non-finite loss.
        ImageError: more images than `config.unreadable` allows cannot be read any more.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written first.
        WriteError: the disk is full or fails.
        ProcessLostError: another process of several failed, was killed, or is out of reach. After
            each of these four errors, `resume=True` continues the run.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> data = mr.load_dataset(write_scenes("scenes", 4, size=64))
        >>> config = mr.TrainConfig(steps=2, batch_size=2, tensorboard=False)
        >>> model = mr.maskrcnn_r18_small(data.categories)
        >>> run = mr.train(model, data, config=config, out="run", progress=False, device="cpu")
        >>> sorted(path.name for path in run.out.glob("*.safetensors"))
        ['checkpoint.safetensors', 'last.safetensors']
    """
    from ..formats.load_dataset import as_dataset
    from .unlabeled import open_unlabeled

    processes = Processes.start(device)
    with processes.together():
        categories = (model if isinstance(model, ModelConfig) else model.config).categories
        data = as_dataset(data, categories=categories)
        if val is not None:
            val = as_dataset(val, categories=categories)
        images = open_unlabeled(unlabeled, data, val) if unlabeled is not None else None

        trainer = Trainer(
            model,
            data,
            val,
            config,
            Path(out),
            processes,
            resume=resume,
            progress=progress,
            unlabeled=images,
            pretrained=pretrained,
            clock=clock,
            started=started,
            callbacks=callbacks,
            augmentation=augmentation,
            metrics=metrics,
        )
    with contextlib.closing(trainer):
        return trainer.run()


class Trainer:
    """The parts of a run and what the loop does with them. `train` explains the arguments."""

    def __init__(
        self,
        model: ModelConfig | MaskRCNN,
        data: CocoDataset,
        val: CocoDataset | None,
        config: TrainConfig,
        out: Path,
        processes: Processes,
        resume: bool,
        progress: bool,
        unlabeled: CocoDataset | None = None,
        pretrained: str | Path | None = None,
        clock: Callable[[], float] | None = None,
        started: float | None = None,
        callbacks: Sequence[Callback] = (),
        augmentation: Augmentation | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        check_settings(config, data, unlabeled)
        for part in (data, val):
            if part is not None and len(part):
                part.require_images()
        check_callbacks(callbacks)
        earlier = read_session(out, resume, processes)
        given = config
        other_processes = ""
        if earlier:
            config, other_processes = for_processes(given, earlier, out, processes)
        self.config = config
        self.data = data
        self.val = val
        self.out = out
        self.processes = processes
        self.clock = clock or time.monotonic
        self.started = self.clock() if started is None else started

        from ..weights.heads import masks_from_boxes, parts_of

        start = make_network(model, data, val, config, pretrained)
        if processes.main:
            warn_about_heads(start.network.config, data, config)
        self.learner = Learner(start.network, data, config, processes, unlabeled, self.clock)
        self.learner.augmentation = augmentation
        self.own_metrics = dict(metrics or {})
        check_metrics(start.network, self.own_metrics)
        self.images_per_step = self.learner.images_per_step
        self.state = State(total=number_of_steps(config, len(data), self.images_per_step))

        # A resumed run must have the same settings and data.
        parts = {"data": data, "validation": val, "unlabeled": unlabeled}
        parts = {name: part for name, part in parts.items() if part is not None}
        self.settings: PlainDict = {
            "model": to_dict(start.network.config),
            "train": to_dict(given),
            "processes": earlier.processes if earlier else processes.world,
            "pretrained": start.record,
        }
        self.settings |= {name: fingerprint(part) for name, part in parts.items()}
        if augmentation is not None:
            self.settings["augmentation"] = type(augmentation).__qualname__
        if self.own_metrics:
            self.settings["metrics"] = list(self.own_metrics)
        if heads := list(start.network.extra_heads):
            self.settings["extra_heads"] = heads
        refuse_other_processes(self.settings, processes)
        new_plan = ""
        self.saved_step: int | None = None  # of the checkpoint in the folder
        if earlier:
            refuse_other_settings(out, earlier, self.settings)
            self.state = State(**earlier.state)
            self.learner.restore(earlier.tensors, self.state.scaler)
            self.started -= self.state.seconds
            self.saved_step = self.state.step
            new_plan = self._plan_anew(earlier.length)
        claim_folder(out, self.settings, processes)

        self.budget = TimeBudget(config.max_time or math.inf)
        self.saved_at = self.clock()
        self.tidied_at = time.monotonic()
        self.next_row: dict[str, float] = {}
        self.unreadable = {
            name: UnreadableImages(part, config.unreadable, self.state.unreadable, name)
            for name, part in parts.items()
        }
        self.learner.note_unreadable = self.unreadable["data"].note
        if self.learner.teacher:
            self.learner.teacher.note_unreadable = self.unreadable["unlabeled"].note
        self.signals = StopSignals(STOPPING if processes.main else "")
        self.log = RunDisplay(progress and processes.main)
        self.active = ActiveRun(
            out=out,
            model=self.learner.averaged,
            config=config,
            settings=self.settings,
            columns=self._columns(),
            step=self.state.step,
            total=self.state.total,
            resumed=earlier is not None,
            best=self.state.best,
        )
        self.metrics = MetricsFile(self.state.log_bytes if earlier else None)
        self.callbacks = self._callbacks(callbacks)
        self.log.say(first_line(self.state.total, data, config, processes, out))
        self.log.say(f"starts from {start}")
        if text := masks_from_boxes(start.network.config, parts_of(data)):
            self.log.say(text)
        # Parts of one file share its remarks; each is shown once.
        for line in dict.fromkeys(line for part in parts.values() for line in part.remarks()):
            self.log.say(line)
        if self.learner.teacher:
            self.log.say(self.learner.teacher.plan(self.state.total))
        if resume and earlier:
            self.log.say(f"resumed after step {self.state.step}{other_processes}{new_plan}")
        elif resume:
            self.log.say(f"no checkpoint in {out}: starting from the beginning")

    def _plan_anew(self, before: TrainLength) -> str:
        """Replaces the number of steps of a resumed run where its length has changed.

        Returns:
            What changed, as text; empty if nothing did.

        Raises:
            ValueError: the run is already longer.
        """
        state = self.state
        length = TrainLength.of(self.config)
        if length == before:
            return ""

        total = number_of_steps(self.config, len(self.data), self.images_per_step)
        if total is None:
            is_over = state.seconds >= (length.max_time or 0)
        else:
            is_over = state.step > total
        if is_over:
            epochs = state.step * self.images_per_step / len(self.data)
            raise ValueError(
                f"cannot resume {self.out} for {length}: it has already trained "
                f"{counted(state.step, 'step')} ({counted(epochs, 'epoch')}, "
                f"{duration(state.seconds)}). Ask for more, or start a new run in another folder"
            )

        state.total = total
        state.review = None
        state.stopped = False
        state.evaluations_since_best = 0
        return (
            f", with another length: {length}, before {before}. "
            "The schedule is planned anew from here"
        )

    def run(self) -> Run:
        """Trains until the last step, and returns the result. `train` lists the exceptions."""
        try:
            with (
                self.signals,
                stating_what_is_safe(self._what_is_safe),
                self.processes.together(self._what_is_safe),
            ):
                self.callbacks.send("on_start")
                self._draw_examples()
                with self.signals.deferred():
                    self._loop()
                result = self.result()
        except KeyboardInterrupt as stop:
            error = Interrupted(
                self._where_stopped(),
                signal_number=getattr(stop, "signal_number", signal.SIGINT),
                resumable=True,
            )
            self.callbacks.send("on_end", error)
            raise error from None
        except (ImageError, ProcessLostError) as cause:
            error = type(cause)(f"{cause}. {self._what_is_safe()}")
            self.callbacks.send("on_end", error)
            raise error from cause
        except BaseException as error:
            self.callbacks.send("on_end", error)
            raise
        self.callbacks.send("on_end", None)
        return result

    def _loop(self) -> None:
        while self.state.pending or not self.finished:
            row = self.state.pending or self._step_or_save()
            if self.total_due():
                self.update_total()

            if self.evaluation_due:
                self.save_before_evaluation(row)
                self._stop_if(self._agree()[0])
                with self.signals.at_once():
                    numbers = self.evaluate()
                row |= numbers
                self._send("on_evaluation", numbers)

            self._send("on_step", row)
            self._tidy_memory()
            stop, saving = self._agree()
            if stop or saving or "val_loss" in row:
                self.save()
            self._stop_if(stop)

    def _tidy_memory(self) -> None:
        """Returns unused memory if that was long ago."""
        if time.monotonic() - self.tidied_at > TIDY_EVERY:
            return_unused_memory()
            self.tidied_at = time.monotonic()

    def _send(self, event: str, *arguments: Any) -> None:
        """Sends an event to the callbacks of the main process."""
        self.active.step = self.state.step
        self.active.total = self.state.total
        self.active.best = self.state.best
        self.callbacks.send(event, *arguments)

    def _step_or_save(self) -> dict[str, float]:
        """Runs a step. If no image can be read for it, saves the steps before it."""
        try:
            return self.step()
        except ImageError:
            if self.state.step:
                self.save()
            raise

    def _agree(self) -> tuple[Exception | KeyboardInterrupt | None, bool]:
        """What all processes do now.

        Returns:
            Why to stop: a signal, or unreadable images. Whether to write a checkpoint, also because
            a callback has ended the run.
        """
        own = {name: images.messages for name, images in self.unreadable.items()}
        request = (self.signals.received, self.active.stop_reason, own, self.checkpoint_due)
        received, reasons, unreadable, saving = zip(*self.processes.gather(request), strict=True)

        for name, images in self.unreadable.items():
            for of_process in unreadable:
                images.messages.update(of_process[name])
        if (reason := next(filter(None, reasons), "")) and not self.state.stopped:
            self.state.stopped = True
            self.log.say(f"stopped after step {self.state.step} by a callback: {reason}")

        stop: Exception | KeyboardInterrupt | None = None
        if (number := next(filter(None, received), None)) is not None:
            stop = Interrupted(signal_number=number)
        elif too_many := next((i.too_many() for i in self.unreadable.values() if i.too_many()), ""):
            stop = ImageError(too_many)
        return stop, saving[0] or self.finished  # the main process writes it

    def _stop_if(self, reason: BaseException | None) -> None:
        if reason is not None:
            raise reason

    def _where_stopped(self) -> str:
        """Where an interrupted run ended, and what is saved, as text."""
        step = self.state.step
        if self.saved_step is None:
            return f"stopped after step {step}; {self.out} holds no checkpoint yet, {FROM_START}"
        if self.saved_step == step:
            return f"stopped after step {step}; the checkpoint in {self.out} holds it"
        return (
            f"stopped after step {step}; the checkpoint in {self.out} holds step {self.saved_step}"
        )

    def _what_is_safe(self) -> str:
        """What a run that ends by a fault has saved, and how it continues, as a sentence."""
        if self.saved_step is None:
            return f"{self.out} holds no checkpoint yet, {FROM_START}"
        return (
            f"The checkpoint of step {self.saved_step} in {self.out} is safe; "
            "after the repair, continue with resume=True (--resume)"
        )

    def _draw_examples(self) -> None:
        """Writes examples.png before the first step of a run."""
        if self.processes.main and self.state.step == 0:
            from .examples import draw_examples

            augmentation = self.learner.augmentation
            model = self.learner.model.config
            sheet = draw_examples(self.data, model, self.config, augmentation=augmentation)
            with replacing(self.out / "examples.png") as partial:
                sheet.save(partial, "PNG")

    def step(self) -> dict[str, float]:
        """Runs one optimizer step; returns its numbers by column."""
        state = self.state
        if not self.budget.steps:
            self.count_time()
        row = self.learner.step(state.step, state.total)
        seconds = self.count_time()

        self.budget.steps.append(seconds)
        state.step += 1
        row["step"] = state.step
        row["epoch"] = state.step * self.images_per_step / len(self.data)
        row["time"] = state.seconds
        row["images_per_second"] = self.images_per_step / seconds
        row |= self.next_row
        self.next_row = {}
        return row

    def count_time(self) -> float:
        """Updates the seconds of the run; returns those since the last call."""
        seconds = self.clock() - self.started - self.state.seconds
        self.state.seconds += seconds
        return seconds

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        state = self.state
        return state.stopped or (state.total is not None and state.step >= state.total)

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation follows the step just done."""
        if self.val is None:
            return False
        if self.state.pending:
            return True
        every = self.config.evaluate_every * len(self.data)
        images = self.state.step * self.images_per_step
        return self.finished or images // every > (images - self.images_per_step) // every

    @property
    def checkpoint_due(self) -> bool:
        """Whether the run has ended or enough time has passed since the last checkpoint."""
        every = max(self.config.checkpoint_every, self.budget.checkpoint / MOST_TIME_SAVING)
        return self.finished or self.clock() - self.saved_at > every

    def total_due(self) -> bool:
        """Whether to decide or correct the number of steps of a run with `max_time` now."""
        if not self.budget.steps:
            return False  # resumed before an evaluation
        if self.state.total is None:
            return self.processes.from_main(self.budget.ready(self.state.seconds))
        return self.state.step == self.state.review

    def update_total(self) -> None:
        """Decides or corrects how many steps fit into `max_time`."""
        state = self.state
        budget = self.budget
        steps_per_evaluation = self.config.evaluate_every * len(self.data) / self.images_per_step
        first = state.total is None
        has_teacher = self.learner.teacher is not None
        if has_teacher:
            budget.burn_in = self.config.unlabeled.burn_in
            budget.unlabeled = self.learner.unlabeled_seconds()
            self.count_time()

        def fitting() -> int:
            checkpoint_every = self.config.checkpoint_every
            total = self.processes.from_main(
                budget.total(state.step, state.seconds, steps_per_evaluation, checkpoint_every)
            )
            at_least = total if first else with_least_left(state.step, total)
            return min(at_least, self.config.steps or total)

        if self.val is not None and not budget.evaluation:
            self._plan_validation(1 + math.floor(fitting() / steps_per_evaluation))

        if first or budget.known:
            before = state.total
            state.total = fitting()
            if before is None or abs(state.total - before) > REPORTED_CHANGE * before:
                was = "" if before is None else f" (was {before})"
                self.log.say(
                    f"{counted(state.total, 'step')}{was} in {duration(budget.max_time)}, "
                    f"{budget.step_seconds():.3g} s per step"
                )

        assert state.total is not None
        # With unlabeled images the remaining steps are slower than those measured: no correction.
        state.review = None if has_teacher else next_review(state.step, state.total)
        self.saved_at = -math.inf  # so that the number is on the disk before the next step

    def _plan_validation(self, evaluations: int) -> None:
        """Times the validation of a few images, and limits their number if the time is short."""
        assert self.val is not None
        state = self.state
        images = len(self.val)
        one = _spread(self.val, 1)  # the first validation is slower: libraries load
        few = _spread(self.val, SAMPLED)
        image_seconds = 0.0
        with self.log.stage("timing the validation", 2 * (len(one) + len(few))) as advance:
            for part in (one, few):
                self.count_time()
                self._validate(part, advance, {})
                image_seconds = self.processes.from_main(self.count_time() / len(part))

        if state.validated is None:
            state.validated = self.budget.images_to_validate(images, image_seconds, evaluations)
        self.budget.evaluation = state.validated * image_seconds
        self.log.say(self._validation_plan(image_seconds, evaluations))

    def _validation_plan(self, image_seconds: float, evaluations: int) -> str:
        """How many images a run with a time budget validates on, and why."""
        assert self.val is not None
        images = len(self.val)
        count = self.state.validated or images
        max_time = self.budget.max_time
        each = (
            f"{duration(count * image_seconds)} {'each time' if evaluations > 1 else 'at the end'}"
        )
        if count == images:
            return (
                f"validates on {'the image' if images == 1 else f'all {images:,} images'}: {each}"
            )

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
            self.learner.averaged,
            images,
            self.config,
            self.processes,
            advance,
            note_unreadable=self.unreadable["validation"].note,
            metrics=metrics,
            training=self.data,
        )

    def save_before_evaluation(self, row: dict[str, float]) -> None:
        """Writes a checkpoint from which a resumed run evaluates the step just done."""
        if not self.state.pending:
            self.state.pending = row
            self.save()
        self.state.pending = {}

    def evaluate(self) -> dict[str, float]:
        """Evaluates the averaged weights and keeps them if they are the best so far.

        Returns:
            The numbers by column.
        """
        assert self.val is not None
        state = self.state
        self.count_time()
        images = self.val
        if state.validated is not None and state.validated < len(images):
            images = _spread(images, state.validated)
        # Every image counts twice: the loss, and the predictions.
        with self.log.stage("validating", 2 * -(-len(images) // self.processes.world)) as advance:
            numbers = self._validate(images, advance, self.own_metrics)

        if state.best is None or numbers["val/AP"] > state.best["val/AP"]:
            state.best = {"step": state.step, **numbers}
            state.evaluations_since_best = 0
            self._keep("best.safetensors")
        else:
            state.evaluations_since_best += 1
        patience = self.config.patience
        state.stopped = patience is not None and state.evaluations_since_best >= patience

        seconds = self.count_time()
        self.budget.evaluation = seconds
        parts = ", ".join(
            f"{name.removeprefix('val/')} {value:.3f}"
            for name, value in numbers.items()
            if name.startswith("val/")
        )
        self.log.say(
            f"step {state.step}, validation: loss {numbers['val_loss']:.3f}, {parts} "
            f"({duration(seconds)})"
        )
        if state.stopped:
            self.log.say(
                f"stopped early: AP did not improve in {counted(patience or 0, 'evaluation')}"
            )
        return numbers | {"evaluation_seconds": seconds}

    def save(self) -> None:
        """Writes the newest model and the checkpoint."""
        self.count_time()
        if self.processes.main:
            self._keep("last.safetensors")
            self.state.log_bytes = self.metrics.num_bytes()
            self.state.unreadable = {name: i.stored() for name, i in self.unreadable.items()}
            self.state.scaler = self.learner.scaler.state_dict()
            write_checkpoint(
                self.out / "checkpoint.safetensors",
                self.learner.tensors(),
                {"state": asdict(self.state), "settings": self.settings},
            )

        seconds = self.count_time()
        self.saved_at = self.clock()
        self.budget.checkpoint = seconds
        self.next_row["checkpoint_seconds"] = seconds
        self.saved_step = self.state.step
        self._send("on_checkpoint", self.out / "checkpoint.safetensors")

    def _keep(self, name: str) -> None:
        """Writes the averaged weights as a model file."""
        from ..weights.load import save

        if self.processes.main:
            info = {"step": self.state.step, "best": self.state.best}
            save(self.learner.averaged, self.out / name, info=info)

    def result(self) -> Run:
        """Draws the curves and returns the best model with the numbers of its evaluations."""
        from ..weights.load import load

        state = self.state
        model = self.learner.averaged.eval()
        rows: list[dict[str, float]] = []
        if self.processes.main:
            rows = read_rows(self.out / "metrics.csv")
            draw_curves(rows, self.out / "curves.png")
            if state.best and self.val:
                heads = copy.deepcopy(model.extra_heads).by_name()
                device = str(self.processes.device)
                model = load(self.out / "best.safetensors", device=device, heads=heads)

        best = ""
        if state.best:
            best = f", best AP {state.best['val/AP']:.3f} after step {state.best['step']}"
        self.log.say(
            f"done: {counted(state.step, 'step')} in {duration(state.seconds)}{best}; {self.out}"
        )
        skipped = [line for images in self.unreadable.values() for line in images.lines()]
        if skipped:
            self.log.say(
                f"skipped {counted(len(skipped), 'unreadable image')}: {'; '.join(skipped)}"
            )
        for line in self.callbacks.failed:
            self.log.say(line)
        return Run(model, self.out, list(evaluation_rows(rows)), state.best, skipped)

    def close(self) -> None:
        """Stops the loader's processes."""
        self.learner.close()

    def _columns(self) -> list[str]:
        columns = ["step", "epoch", "time", *self.learner.columns]
        columns += ["images_per_second", "checkpoint_seconds"]
        if self.val:
            columns += validation_columns(self.learner.model, self.own_metrics)
            columns.append("evaluation_seconds")
        return columns

    def _callbacks(self, of_user: Sequence[Callback]) -> Callbacks:
        """The run's own callbacks, then the user's; none outside the main process."""
        own: list[Callback] = [self.metrics]
        if self.config.tensorboard:
            own.append(TensorBoardLog())
        own.append(self.log)
        return Callbacks([*own, *of_user], self.active, silent=not self.processes.main)


def _spread(data: CocoDataset, count: int) -> CocoDataset:
    """At most `count` images, at equal distances."""
    count = min(count, len(data))
    return data.subset([i * len(data) // count for i in range(count)])
