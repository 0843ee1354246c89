"""Progress bars in one style, on standard error, so that standard output stays clean.

`track` shows the progress of a loop. `progress` shows that of work in steps of different sizes,
such as the chunks of a download. `steps` shows that of a few long steps. Bars of `track` disappear
when they are finished; without a terminal, a line every ten seconds replaces them. The others stay.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

FEW = 20
"""A sequence of fewer items gets a bar only if `show` is True."""
LINE_EVERY = 10.0
"""Seconds between the lines that replace a bar where there is no terminal."""


def track(
    items: Iterable[T],
    description: str,
    *,
    total: int | None = None,
    show: bool | None = None,
) -> Iterator[T]:
    """Yields the items of a loop and shows a progress bar meanwhile.

    Args:
        items: what to loop over.
        description: what the loop does, in the form "reading images".
        total: the number of items; by default `len(items)`, or unknown if they have no length.
        show: show the bar; by default only if there are at least 20 items.

    Example:
        >>> from maskrcnn.runtime.progress import track
        >>> sum(track([1, 2, 3], "adding numbers"))
        6
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # ty: ignore[invalid-argument-type]
    if show is None:
        show = total is None or total >= FEW
    if not show:
        yield from items
        return

    with _bar("items", transient=True) as bar:
        if bar.disable:
            yield from _with_lines(items, description, total)
        else:
            yield from bar.track(items, total=total, description=description)


def _with_lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    """Yields the items; prints how many are done now and then."""
    shown = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - shown > LINE_EVERY:
            shown = now
            of_total = "" if total is None else f" of {total}"
            print(f"{description}: {done}{of_total}", file=sys.stderr, flush=True)
        yield item


@contextmanager
def progress(
    description: str,
    total: int | None,
    unit: Literal["items", "bytes"] = "items",
    *,
    done: int = 0,
    show: bool = True,
) -> Generator[Callable[[int], None]]:
    """Shows a progress bar while the block runs, and yields a function that advances it.

        with progress("model.pth", total=size, unit="bytes") as advance:
            while chunk := source.read(1 << 20):
                advance(len(chunk))

    Args:
        description: what the block does, or the name of what it works on.
        total: how much there is to do; None if unknown.
        unit: "bytes" shows sizes and speed, "items" shows counts.
        done: how much of the total was done before.
        show: show the bar.
    """
    with _bar(unit, transient=False, show=show) as bar:
        task = bar.add_task(description, total=total, completed=done)
        yield lambda amount: bar.advance(task, amount)


@contextmanager
def steps(
    shares: Mapping[str, float], guess: float, *, show: bool = True
) -> Generator[Callable[[str], None]]:
    """Shows a bar over a few long steps, and yields a function that begins the next one.

    The time that remains follows from the time that the steps so far took.

        with steps({"reading": 1, "computing": 5}, guess=20) as begin:
            begin("reading")
            ...

    Args:
        shares: the steps in their order, and how long each takes relative to the others.
        guess: seconds of all steps, until the first has ended.
        show: show the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    clock = _StepClock(shares, guess)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[clock]}"))
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("", total=sum(shares.values()), clock=clock)

        def begin(name: str) -> None:
            clock.begin(name)
            bar.update(task, description=name, completed=clock.done)

        yield begin
        clock.stop()
        bar.update(task, completed=sum(shares.values()))


class _StepClock:
    """The time that remains for steps of known shares; as text, in minutes and seconds."""

    def __init__(self, shares: Mapping[str, float], guess: float) -> None:
        self.shares = shares
        self.estimate = guess
        self.done = 0.0
        self.start = time.monotonic()
        self.end: float | None = None

    def stop(self) -> None:
        self.end = time.monotonic()

    def begin(self, name: str) -> None:
        names = list(self.shares)
        self.done = sum(self.shares[n] for n in names[: names.index(name)])
        if self.done:
            elapsed = time.monotonic() - self.start
            self.estimate = elapsed * sum(self.shares.values()) / self.done

    def __str__(self) -> str:
        if self.end is not None:
            return f"done in {_minutes(self.end - self.start)}"
        remaining = max(self.estimate - (time.monotonic() - self.start), 0)
        return f"about {_minutes(remaining)} left" if remaining >= 1 else "almost done"


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


def _bar(unit: Literal["items", "bytes"], *, transient: bool, show: bool = True) -> Progress:
    # Imported here because importing rich takes longer than `import maskrcnn`.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if unit == "bytes":
        counts = (DownloadColumn(), TransferSpeedColumn())
    else:
        counts = (MofNCompleteColumn(),)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not show or (transient and not console.is_terminal),
    )
