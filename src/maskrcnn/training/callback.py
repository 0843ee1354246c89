"""What follows a training run: `Callback`, for loggers, stopping rules and your own code.

In: the events of a run. Out: whatever a callback makes of them. metrics.csv, TensorBoard and the
progress bar are callbacks too (log.py, run_display.py), and so are the trackers (trackers.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..runtime.atomic_files import WriteError
from ..runtime.plain_data import PlainDict

if TYPE_CHECKING:
    from ..model.maskrcnn import MaskRCNN


@dataclass
class ActiveRun:
    """A training run in progress, as its callbacks see it."""

    out: Path
    """The run folder."""
    model: MaskRCNN
    """The model that is evaluated and saved (averaged weights where ema > 0). Its weights change
    with every step; a callback must not change them.
    """
    config: TrainConfig
    settings: PlainDict
    """Settings of model, training and data, as in config.json."""
    columns: Sequence[str]
    """The names that a row may have, in the order of metrics.csv."""
    step: int = 0
    """Steps that are done. In `on_start` of a resumed run, those of its earlier sessions."""
    total: int | None = None
    """Steps of the run; None in a run with `max_time` until they have been decided."""
    resumed: bool = False
    """Whether the run continues from a checkpoint."""
    best: dict[str, float] | None = None
    """Step and numbers of the best evaluation so far."""
    stop_reason: str = ""
    """Why a callback asked to stop; empty if none did."""

    def stop(self, reason: str) -> None:
        """Ends the run after this step, with a checkpoint, as if it were finished.

        Args:
            reason: for the message.
        """
        self.stop_reason = self.stop_reason or reason


class Callback:
    """Follows a training run: override the events that you need, and pass it to `train`.

    Every step sends `on_evaluation`, if one was due, then `on_step`, then `on_checkpoint`, if one
    was written. Only the main process of several sends events. A callback that raises an exception
    is reported once and gets no further events; the run continues. To stop a run, call
    `run.stop(reason)`.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> class StopAtLoss(mr.Callback):
        ...     def on_step(self, run, row):
        ...         if row["loss"] < 1000:
        ...             run.stop("the loss is low enough")
        >>> data = mr.load_dataset(write_scenes("scenes", 4, size=64))
        >>> config = mr.TrainConfig(steps=9, batch_size=2, tensorboard=False)
        >>> model = mr.maskrcnn_r18_small(data.categories)
        >>> settings = dict(config=config, out="run", progress=False, device="cpu")
        >>> run = mr.train(model, data, callbacks=[StopAtLoss()], **settings)
        >>> len((run.out / "metrics.csv").read_text().splitlines())  # a header and one step
        2
    """

    def on_start(self, run: ActiveRun) -> None:
        """Called before the first step of a session, also of a resumed run.

        Args:
            run: the run.
        """

    def on_step(self, run: ActiveRun, row: Mapping[str, float]) -> None:
        """Called after each step, and after its evaluation if there was one.

        Args:
            run: the run.
            row: the numbers of the step by column, as in metrics.csv.
        """

    def on_evaluation(self, run: ActiveRun, numbers: Mapping[str, float]) -> None:
        """Called after each evaluation on the validation data.

        Args:
            run: the run.
            numbers: its loss and APs by column, which the row of the step holds as well.
        """

    def on_checkpoint(self, run: ActiveRun, path: Path) -> None:
        """Called after each checkpoint, when it is safely on the disk.

        Args:
            run: the run.
            path: the checkpoint. last.safetensors beside it holds the newest model.
        """

    def on_end(self, run: ActiveRun, error: BaseException | None) -> None:
        """Called once at the end of a session.

        Args:
            run: the run.
            error: what ended it early, such as `Interrupted`; None if it is finished.
        """


class Callbacks:
    """Sends the events of a run to its callbacks.

    Args:
        callbacks: in the order in which they get each event.
        run: the run.
        silent: send nothing, in all processes but the main one.
    """

    def __init__(self, callbacks: Sequence[Callback], run: ActiveRun, silent: bool = False) -> None:
        self.run = run
        self.failed: list[str] = []
        """One line per callback that failed."""
        self._active = [] if silent else list(callbacks)

    def send(self, event: str, *arguments: Any) -> None:
        """Calls a method of every callback.

        Args:
            event: its name.
            arguments: what it gets after the run.

        Raises:
            WriteError: the disk is full where the package writes. Any other exception of a callback
                is reported, and the callback gets no further events.
        """
        for callback in tuple(self._active):
            try:
                getattr(callback, event)(self.run, *arguments)
            except WriteError:
                raise
            except Exception as error:
                self._active.remove(callback)

                line = (
                    f"callback {type(callback).__name__} failed after step {self.run.step} "
                    f"({event}: {type(error).__name__}: {error})"
                )
                self.failed.append(line)
                warnings.warn(
                    f"{line}. It gets no further events; the training continues", stacklevel=2
                )


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raises an error for an object that is not a callback.

    Raises:
        TypeError: one of them is not an object of a subclass of `Callback`.
    """
    for index, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks[{index}]: expected an object of a subclass of maskrcnn.Callback, "
                f"got {callback!r:.80}"
            )
