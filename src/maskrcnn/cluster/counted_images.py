"""How many images there are of a kind, with the first of them, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_SHOWN = 5


@dataclass
class CountedImages:
    """Images of a kind; as text, such as "3 (a.png, b.png, c.png)"."""

    count: int = 0
    shown: list[str] = field(default_factory=list)
    """The first of them, one more than a text shows."""

    def add(self, key: str) -> None:
        """Adds an image by its stable id."""
        self.count += 1
        if len(self.shown) <= _SHOWN:
            self.shown.append(key)

    def add_all(self, other: CountedImages) -> None:
        """Adds those of another count."""
        self.count += other.count
        self.shown = [*self.shown, *other.shown][: _SHOWN + 1]

    def __str__(self) -> str:
        return f"{self.count:,} ({first_of(self.shown)})"


def first_of(names: Sequence[str]) -> str:
    """The first names of many, as text."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
