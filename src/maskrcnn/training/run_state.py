"""The progress of a run: plain data for its checkpoint, and the seconds that it has taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class RunState:
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

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.stopped or (self.total is not None and self.step >= self.total)


class RunTime:
    """Counts the seconds of a run, over all of its sessions, in its state.

    Args:
        state: with the seconds of earlier sessions.
        clock: returns the time in seconds.
        started: the time, by `clock`, at which this session began.
    """

    def __init__(self, state: RunState, clock: Callable[[], float], started: float) -> None:
        self.state = state
        self.now = clock
        self._started = started - state.seconds

    def count(self) -> float:
        """Updates the seconds of the run; returns those since the last call."""
        seconds = self.now() - self._started - self.state.seconds
        self.state.seconds += seconds
        return seconds
