"""The length of a resumed run, where it is another than before: the schedule is planned anew."""

from __future__ import annotations

from pathlib import Path

from ..config import TrainConfig
from ..runtime.counted import counted
from .checkpoint import TrainLength
from .run_state import RunState
from .setup import duration, number_of_steps


def plan_anew(
    state: RunState,
    config: TrainConfig,
    before: TrainLength,
    num_images: int,
    images_per_step: int,
    out: Path,
) -> str:
    """Replaces the number of steps of a resumed run where its length has changed.

    Args:
        state: the progress of the run, which gets the number.
        config: with the present length.
        before: the length of the earlier session.
        num_images: in the training data.
        images_per_step: of all processes.
        out: the run folder, for messages.

    Returns:
        What changed, as text; empty if nothing did.

    Raises:
        ValueError: the run is already longer.
    """
    length = TrainLength.of(config)
    if length == before:
        return ""

    total = number_of_steps(config, num_images, images_per_step)
    if total is None:
        is_over = state.seconds >= (length.max_time or 0)
    else:
        is_over = state.step > total
    if is_over:
        epochs = state.step * images_per_step / num_images
        raise ValueError(
            f"cannot resume {out} for {length}: it has already trained "
            f"{counted(state.step, 'step')} ({counted(epochs, 'epoch')}, "
            f"{duration(state.seconds)}). Ask for more, or start a new run in another folder"
        )

    state.total = total
    state.review = None
    state.stopped = False
    state.evaluations_since_best = 0
    return (
        f", with another length: {length}, before {before}. The schedule is planned anew from here"
    )
