"""The log of a run: metrics.csv, TensorBoard events, and a progress bar or, without a terminal,
lines.

In: one row of numbers per step, by column. Out: `metrics.csv` with a line per step; validation
columns are filled where there was an evaluation. Its size in bytes goes into each checkpoint, and a
resumed run truncates the rows that it will write again.
"""

from __future__ import annotations

import csv
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

PLAIN_LINE_EVERY = 30.0  # seconds, without a terminal for a progress bar
REFRESH_EVERY = 0.2  # seconds, of the progress bar


class RunLog:
    """Writes the rows of one run and shows them.

    Args:
        out: the run's folder; None (all processes but the main one) writes and shows nothing.
        columns: columns of metrics.csv, in order; `step` is the first.
        progress: show progress and messages.
        tensorboard: write TensorBoard events too.
        resume_at: bytes of metrics.csv at the checkpoint that the run continues from; None = a new
            run.
        first_step: the step that the run continues from.
        total: number of steps; None = not known yet.
    """

    def __init__(
        self,
        out: Path | None,
        columns: Sequence[str],
        *,
        progress: bool = True,
        tensorboard: bool = True,
        resume_at: int | None = None,
        first_step: int = 0,
        total: int | None = None,
    ) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.columns = list(columns)
        self._file = None
        self._events = None

        self._console = Console(quiet=not progress or out is None, highlight=False, soft_wrap=True)
        # Refreshed explicitly: a refreshing thread would be copied into the forked workers.
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            auto_refresh=False,
            disable=not self._console.is_terminal or self._console.quiet,
        )
        self._task = self._bar.add_task("training", total=total, completed=first_step, text="")

        self._recent: deque[Mapping[str, float]] = deque(maxlen=20)
        self._shown = time.monotonic()
        self._refreshed = self._shown
        if out is not None:
            self._file = _open_rows(out / "metrics.csv", self.columns, resume_at)
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(
                    str(out / "tensorboard"),
                    purge_step=first_step + 1 if resume_at is not None else None,
                )
        self._bar.start()

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._console.print(text, markup=False)

    def row(self, values: Mapping[str, float], total: int | None) -> None:
        """Writes a step's numbers and advances the progress bar."""
        step = int(values["step"])
        if self._file is not None:
            csv.writer(self._file).writerow([_text(values.get(name)) for name in self.columns])
            self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if name != "step":
                    self._events.add_scalar(_tag(name), value, step)
        self._recent.append(values)
        self._show(step, total)

    def num_bytes(self) -> int:
        """Size of metrics.csv after writing it to the disk; checkpoints store it (`resume_at`)."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    @contextmanager
    def stage(self, description: str, total: int) -> Generator[Callable[[int], None]]:
        """Shows the progress of something else than steps while the block runs.

        Args:
            description: what the block does, such as "validating".
            total: how much there is to do.

        Yields:
            A function that adds to what is done.
        """
        task = self._bar.add_task(description, total=total, text="")
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            now = time.monotonic()
            if not self._bar.disable and now - self._refreshed > REFRESH_EVERY:
                self._refreshed = now
                self._bar.update(task, completed=done, refresh=True)
            elif self._bar.disable and now - self._shown > PLAIN_LINE_EVERY:
                self._shown = now
                self.say(f"{description}: {done} of {total}")

        try:
            yield advance
        finally:
            self._bar.remove_task(task)

    def pause(self) -> None:
        """Hides the progress bar while something else draws one."""
        self._bar.stop()

    def go_on(self) -> None:
        """Shows the progress bar again."""
        self._bar.start()

    def close(self) -> None:
        """Closes the files and the progress bar."""
        self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()

    def _show(self, step: int, total: int | None) -> None:
        now = time.monotonic()
        if not self._bar.disable and (now - self._refreshed > REFRESH_EVERY or step == total):
            self._refreshed = now
            self._bar.update(
                self._task, total=total, completed=step, text=self._summary(), refresh=True
            )
        elif self._bar.disable and (now - self._shown > PLAIN_LINE_EVERY or step == total):
            self._shown = now
            self.say(f"step {step}{f' of {total}' if total else ''}: {self._summary()}")

    def _summary(self) -> str:
        def mean(name: str) -> float:
            return sum(r.get(name, 0.0) for r in self._recent) / len(self._recent)

        terms = [
            name.removeprefix("loss/") for name in self._recent[-1] if name.startswith("loss/")
        ]
        losses = " ".join(f"{name} {mean(f'loss/{name}'):.3f}" for name in terms)
        rate = self._recent[-1]["learning_rate"]
        speed = mean("images_per_second")
        return f"loss {mean('loss'):.3f} ({losses}) lr {rate:.2e} {speed:.1f} img/s"


def read_rows(path: Path) -> list[dict[str, float]]:
    """Reads the rows of a metrics.csv; empty columns are left out."""
    with path.open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def _open_rows(path: Path, columns: Sequence[str], resume_at: int | None) -> TextIO:
    if resume_at is not None and path.is_file():
        file = path.open("r+", newline="")
        file.truncate(min(resume_at, path.stat().st_size))
        file.seek(0, os.SEEK_END)
    else:
        file = path.open("w", newline="")

    if file.tell() == 0:
        csv.writer(file).writerow(columns)
        file.flush()
    return file


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _tag(name: str) -> str:
    return name if "/" in name else f"run/{name}"
