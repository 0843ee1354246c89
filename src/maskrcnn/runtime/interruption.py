"""Ctrl-C and requests to terminate: `Interrupted`, and when it is raised, `StopSignals`.

In: SIGINT, SIGTERM and, on Windows, Ctrl-Break. Out: an exception at once, or, in a block that must
not be cut, a note that one arrived.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """Work was stopped by Ctrl-C or by a request to terminate.

    The message says what is saved. Like any `KeyboardInterrupt` it passes `except Exception`.
    """

    def __init__(
        self, message: str = "", *, signal_number: int = signal.SIGINT, resumable: bool = False
    ) -> None:
        super().__init__(message)
        self.signal_number = int(signal_number)
        """The signal that arrived."""
        self.resumable = resumable
        """Whether the work can be continued: a training run whose folder exists."""

    @property
    def exit_status(self) -> int:
        """What a command ends with: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal_number


class StopSignals:
    """While the block runs, a signal raises `Interrupted`; within `deferred`, the second one does.

    Outside the main thread, where Python allows no signal handlers, nothing changes. A signal that
    the process ignores stays ignored.

        with StopSignals("saving after this step") as signals:
            with signals.deferred():
                step()
            if signals.received: ...

    Args:
        notice: printed to standard error when a signal is deferred; "" = nothing.
    """

    def __init__(self, notice: str = "") -> None:
        self.notice = notice
        self.received: int | None = None
        """The signal that was deferred."""
        self._deferred = False
        self._process = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]
        self._before = {}

    @contextmanager
    def deferred(self) -> Generator[None]:
        """Keeps the first signal in `received` instead of raising, while the block runs."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Within `deferred`: a part that a signal may cut, also one that has arrived already."""
        self._deferred = False
        try:
            if self.received is not None:
                raise Interrupted(signal_number=self.received)
            yield
        finally:
            self._deferred = True

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked process ends as if it had no handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._deferred and self.received is None:
            self.received = number
            if self.notice:
                # print is not reentrant: the signal may have arrived within another print
                os.write(2, f"\n{self.notice}\n".encode())
        else:
            raise Interrupted(signal_number=number)


def ignore_stop_signals() -> None:
    """Makes a worker process leave Ctrl-C and SIGTERM to the process that started it.

    A terminal sends Ctrl-C to all of them, and some job schedulers SIGTERM. A worker that died of
    it would keep its parent from finishing the step.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
