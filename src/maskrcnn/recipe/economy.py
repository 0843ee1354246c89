"""What a recipe may give up so that more steps fit into a time budget or a step into the memory.

`recipe_candidates` makes a candidate of each economy, the best result first. training/trial.py
measures a step and takes the first candidate of which enough steps fit into the time.

The rule is that steps come first: below about a thousand steps from random weights, a smaller input
and fewer images per step cost less accuracy than the steps that they pay for (docs/results.md). A
pretrained trunk gives up images per step first, and needs fewer steps before detail is worth more
than further ones (docs/small_data.md).
"""

from __future__ import annotations

from dataclasses import dataclass

# Optimizer steps that give a good result. Pretrained weights need fewer.
ENOUGH = {"none": 1000, "trunk": 700, "detector": 300, "given": 300}


@dataclass(frozen=True)
class Economy:
    """What a recipe gives up; the default is nothing."""

    detail: float = 1.0
    """Factor on the image's scale and on the side of crops."""
    images: float = 1.0
    """Factor on the images per step."""
    channels: float = 1.0
    """Factor on the channels of the small network's trunk, if it starts from random weights."""
    enough: float = 1.0
    """Factor on the steps that are enough (`ENOUGH`)."""

    def __str__(self) -> str:
        parts: list[str] = []
        if self.detail < 1:
            parts.append(f"detail x {self.detail:g}")
        if self.images < 1:
            parts.append(f"images per step x {self.images:g}")
        if self.channels < 1:
            parts.append(f"channels x {self.channels:g}")
        return ", ".join(parts) or "full detail"


FULL = Economy()
# The best result first, given enough steps; each takes about 0.6 of the time of the one before.
LADDER = (
    FULL,
    Economy(detail=0.7),
    Economy(detail=0.5),
    Economy(detail=0.5, images=0.75),
    Economy(detail=0.5, images=0.75, channels=0.5),
)
TRUNK_LADDER = (
    FULL,
    Economy(images=0.5, enough=0.5),
    Economy(detail=0.7, images=0.5, enough=0.5),
    Economy(detail=0.5, images=0.5, enough=0.5),
)


def ladder(kind: str) -> tuple[Economy, ...]:
    """The economies to try with initial weights of a kind (`ENOUGH`), the best result first."""
    return TRUNK_LADDER if kind == "trunk" else LADDER
