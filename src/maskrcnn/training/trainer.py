"""The loop over the steps of a run, `Trainer`; a single optimizer step is in learner.py.

In: a `RunRequest`. Out: a `Run`.

Resuming is exact: a step depends on the learner's tensors and on the step's number alone
(learner.py), and the checkpoint holds both.

Ctrl-C and SIGTERM end a run after the step in progress, with a checkpoint. So does a callback that
asks for it (callback.py), and so do too many unreadable images (unreadable.py).

Several processes (torchrun) average gradients and the normalizers of the losses. Together they
compute what one process would compute with all their images.
"""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images.read import ImageError
from ..runtime.atomic_files import replacing, stating_what_is_safe
from ..runtime.counted import counted
from ..runtime.interruption import Interrupted, StopSignals
from ..runtime.keep_memory import return_unused_memory
from .callback import ActiveRun, Callback, Callbacks, check_callbacks
from .curves import draw_curves
from .evaluations import Evaluations
from .log import MetricsFile, TensorBoardLog, read_rows
from .process_watch import ProcessLostError
from .run_files import RunFiles
from .run_parts import prepare_run
from .run_request import RunRequest
from .setup import duration, first_line, warn_about_heads
from .training_length import TrainingLength
from .validate import evaluation_rows, validation_columns

if TYPE_CHECKING:
    from ..model.maskrcnn import MaskRCNN

TIDY_EVERY = 10.0  # seconds between returns of unused memory, which take 0.3 % of the time
STOPPING = "Stopping after this step, with a checkpoint. Ctrl-C again ends at once."


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


class Trainer:
    """The parts of a run and what the loop does with them."""

    def __init__(self, request: RunRequest) -> None:
        check_callbacks(request.callbacks)
        run = prepare_run(request)
        if run.processes.main:
            warn_about_heads(run.learner.model.config, run.data, run.config)
        self.parts = run
        self.learner = run.learner
        self.state = run.state
        self.log = run.log
        self.processes = run.processes

        self.metrics = MetricsFile(self.state.log_bytes if run.is_resumed else None)
        self.files = RunFiles(run, self.metrics)
        self.evaluations = Evaluations(run, self.files) if request.val is not None else None
        self.length = TrainingLength(run, self.evaluations)
        self.signals = StopSignals(STOPPING if run.processes.main else "")
        self.tidied_at = time.monotonic()
        self.next_row: dict[str, float] = {}
        self.active = ActiveRun(
            out=run.out,
            model=self.learner.averaged,
            config=run.config,
            settings=run.settings,
            columns=self._columns(),
            step=self.state.step,
            total=self.state.total,
            resumed=run.is_resumed,
            best=self.state.best,
        )
        self.callbacks = self._callbacks(request.callbacks)
        self._announce()
        if run.is_resumed:
            self.log.say(f"resumed after step {self.state.step}{run.changes}")
        elif request.resume:
            self.log.say(f"no checkpoint in {run.out}: starting from the beginning")

    def _announce(self) -> None:
        """Says what is trained, on what, and from where."""
        from ..weights.heads import masks_from_boxes, parts_of

        run = self.parts
        total = self.state.total
        self.log.say(first_line(total, run.data, run.config, run.processes, run.out))
        self.log.say(f"starts from {run.start}")
        if text := masks_from_boxes(self.learner.model.config, parts_of(run.data)):
            self.log.say(text)
        # Sets of one file share its remarks; each is shown once.
        for line in dict.fromkeys(line for part in run.sets.values() for line in part.remarks()):
            self.log.say(line)
        if self.learner.teacher:
            self.log.say(self.learner.teacher.plan(total))

    def run(self) -> Run:
        """Trains until the last step, and returns the result. `train` lists the exceptions."""
        try:
            with (
                self.signals,
                stating_what_is_safe(self.files.what_is_safe),
                self.processes.together(self.files.what_is_safe),
            ):
                self.callbacks.send("on_start")
                self._draw_examples()
                with self.signals.deferred():
                    self._loop()
                result = self.result()

        except KeyboardInterrupt as stop:
            error = Interrupted(
                self.files.where_stopped(),
                signal_number=getattr(stop, "signal_number", signal.SIGINT),
                resumable=True,
            )
            self.callbacks.send("on_end", error)
            raise error from None
        except (ImageError, ProcessLostError) as cause:
            error = type(cause)(f"{cause}. {self.files.what_is_safe()}")
            self.callbacks.send("on_end", error)
            raise error from cause
        except BaseException as error:
            self.callbacks.send("on_end", error)
            raise
        self.callbacks.send("on_end", None)
        return result

    def _loop(self) -> None:
        while self.state.pending or not self.state.finished:
            row = self.state.pending or self._step_or_save()
            if self.length.due():
                self.length.update()
                self.files.make_due()  # so that the number is on the disk before the next step

            if self.evaluations is not None and self.evaluations.due:
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
        own = {name: images.messages for name, images in self.parts.unreadable.items()}
        request = (self.signals.received, self.active.stop_reason, own, self.files.due)
        received, reasons, unreadable, saving = zip(*self.processes.gather(request), strict=True)

        for name, images in self.parts.unreadable.items():
            for of_process in unreadable:
                images.messages.update(of_process[name])
        if (reason := next(filter(None, reasons), "")) and not self.state.stopped:
            self.state.stopped = True
            self.log.say(f"stopped after step {self.state.step} by a callback: {reason}")

        stop: Exception | KeyboardInterrupt | None = None
        if (number := next(filter(None, received), None)) is not None:
            stop = Interrupted(signal_number=number)
        elif too_many := next(
            (i.too_many() for i in self.parts.unreadable.values() if i.too_many()), ""
        ):
            stop = ImageError(too_many)
        return stop, saving[0] or self.state.finished  # the main process writes it

    def _stop_if(self, reason: BaseException | None) -> None:
        if reason is not None:
            raise reason

    def _draw_examples(self) -> None:
        """Writes examples.png before the first step of a run."""
        if self.processes.main and self.state.step == 0:
            from .examples import draw_examples

            augmentation = self.learner.augmentation
            model = self.learner.model.config
            sheet = draw_examples(
                self.parts.data, model, self.parts.config, augmentation=augmentation
            )
            with replacing(self.parts.out / "examples.png") as partial:
                sheet.save(partial, "PNG", compress_level=1)

    def step(self) -> dict[str, float]:
        """Runs one optimizer step; returns its numbers by column."""
        state = self.state
        if not self.parts.budget.steps:
            self.parts.time.count()
        row = self.learner.step(state.step, state.total)
        seconds = self.parts.time.count()

        self.parts.budget.steps.append(seconds)
        state.step += 1
        row["step"] = state.step
        row["epoch"] = state.step * self.learner.images_per_step / len(self.parts.data)
        row["time"] = state.seconds
        row["images_per_second"] = self.learner.images_per_step / seconds
        row |= self.next_row
        self.next_row = {}
        return row

    def save_before_evaluation(self, row: dict[str, float]) -> None:
        """Writes a checkpoint from which a resumed run evaluates the step just done."""
        if not self.state.pending:
            self.state.pending = row
            self.save()
        self.state.pending = {}

    def evaluate(self) -> dict[str, float]:
        """Evaluates the averaged weights; returns the numbers by column."""
        assert self.evaluations is not None
        return self.evaluations.run()

    def save(self) -> None:
        """Writes the newest model and the checkpoint."""
        self.next_row["checkpoint_seconds"] = self.files.save()
        self._send("on_checkpoint", self.files.checkpoint)

    def result(self) -> Run:
        """Draws the curves and returns the best model with the numbers of its evaluations."""
        from ..weights.load import load

        state = self.state
        model = self.learner.averaged.eval()
        rows: list[dict[str, float]] = []
        if self.processes.main:
            rows = read_rows(self.parts.out / "metrics.csv")
            draw_curves(rows, self.parts.out / "curves.png")
            if state.best and self.evaluations is not None:
                heads = copy.deepcopy(model.extra_heads).by_name()
                device = str(self.processes.device)
                model = load(self.parts.out / "best.safetensors", device=device, heads=heads)

        best = ""
        if state.best:
            best = f", best AP {state.best['val/AP']:.3f} after step {state.best['step']}"
        steps = counted(state.step, "step")
        self.log.say(f"done: {steps} in {duration(state.seconds)}{best}; {self.parts.out}")
        skipped = [line for images in self.parts.unreadable.values() for line in images.lines()]
        if skipped:
            number = counted(len(skipped), "unreadable image")
            self.log.say(f"skipped {number}: {'; '.join(skipped)}")
        for line in self.callbacks.failed:
            self.log.say(line)
        return Run(model, self.parts.out, list(evaluation_rows(rows)), state.best, skipped)

    def close(self) -> None:
        """Stops the loader's processes."""
        self.learner.close()

    def _columns(self) -> list[str]:
        columns = ["step", "epoch", "time", *self.learner.columns]
        columns += ["images_per_second", "checkpoint_seconds"]
        if self.parts.sets.get("validation"):
            columns += validation_columns(self.learner.model, self.parts.metrics)
            columns.append("evaluation_seconds")
        return columns

    def _callbacks(self, of_user: Sequence[Callback]) -> Callbacks:
        """The run's own callbacks, then the user's; none outside the main process."""
        own: list[Callback] = [self.metrics]
        if self.parts.config.tensorboard:
            own.append(TensorBoardLog())
        own.append(self.log)
        return Callbacks([*own, *of_user], self.active, silent=not self.processes.main)
