"""The progress of a run on the terminal: a bar or, without a terminal, lines. A callback."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

from .callback import ActiveRun, Callback

PLAIN_LINE_EVERY = 30.0  # seconds, without a terminal for a progress bar
REFRESH_EVERY = 0.2  # seconds, of the progress bar


class RunDisplay(Callback):
    """Shows the steps of a run, and messages above them.

    Args:
        show: show anything.
    """

    def __init__(self, show: bool = True) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(quiet=not show, highlight=False, soft_wrap=True)
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
        self._task = self._bar.add_task("training", total=None, text="")
        self._recent: deque[Mapping[str, float]] = deque(maxlen=20)
        self._shown = time.monotonic()
        self._refreshed = self._shown

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._console.print(text, markup=False)

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

    def on_start(self, run: ActiveRun) -> None:
        """Shows the bar."""
        self._bar.reset(self._task, total=run.total, completed=run.step)
        self._bar.start()

    def on_step(self, run: ActiveRun, row: Mapping[str, float]) -> None:
        """Advances the bar or, every half minute, prints a line."""
        self._recent.append(row)
        now = time.monotonic()
        is_last = run.step == run.total
        if not self._bar.disable and (now - self._refreshed > REFRESH_EVERY or is_last):
            self._refreshed = now
            self._bar.update(
                self._task, total=run.total, completed=run.step, text=self._summary(), refresh=True
            )
        elif self._bar.disable and (now - self._shown > PLAIN_LINE_EVERY or is_last):
            self._shown = now
            of_total = f" of {run.total}" if run.total else ""
            self.say(f"step {run.step}{of_total}: {self._summary()}")

    def on_end(self, run: ActiveRun, error: BaseException | None) -> None:
        """Stops the bar."""
        self._bar.stop()

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
