"""Counts what is in data and is read differently than written, or is not used: `Notes`.

In:  one call of `add` for each entry concerned.
Out: one `Note` for each kind, with its count, how it is handled, and examples.

A note is no problem: nothing has to be fixed. It makes sure that nothing happens silently. `check`,
`train`, `evaluate`, `convert` and `rank` print the notes of a `CocoDataset`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..runtime.counted import counted

_EXAMPLES = 3
_LONGEST = 200  # characters of a kind and of an example
_MOST_KINDS = 60  # a file can name thousands of attributes; further kinds are counted together


@dataclass(frozen=True)
class Note:
    """One kind of thing in the data, counted."""

    what: str
    """What was found, in a few words."""
    count: int
    """Number of entries that have it."""
    handled: str
    """What happens with it."""
    examples: tuple[str, ...] = ()
    """Where it was found first."""
    is_rewritten: bool = False
    """Whether the entries have other values in memory than in the file: a fixed file has those."""

    def __str__(self) -> str:
        such_as = f", such as {'; '.join(self.examples)}" if self.examples else ""
        return f"{self.what} ({self.count:,}): {self.handled}{such_as}"


class Notes:
    """Collects notes.

    Example:
        >>> from maskrcnn.annotations.notes import Notes
        >>> notes = Notes()
        >>> for number in (3, 4):
        ...     notes.add("numbers written as text", "read as numbers", f"annotation {number}")
        >>> [str(note) for note in notes.all()]
        ['numbers written as text (2): read as numbers, such as annotation 3; annotation 4']
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], list[str]] = {}
        self._rewritten: set[tuple[str, str]] = set()

    def add(
        self,
        what: str,
        handled: str,
        example: str = "",
        count: int = 1,
        *,
        is_rewritten: bool = False,
    ) -> None:
        """Counts one entry, or `count` of them.

        Args:
            what: what was found.
            handled: what happens with it.
            example: where it was found; the first few are kept.
            count: number of entries.
            is_rewritten: whether the entries get other values than the file has.
        """
        key = (what[:_LONGEST], handled)
        if key not in self._counts and len(self._counts) >= _MOST_KINDS:
            key = ("other kinds", handled)
        if is_rewritten:
            self._rewritten.add(key)
        self._counts[key] = self._counts.get(key, 0) + count
        examples = self._examples.setdefault(key, [])
        if example and len(examples) < _EXAMPLES:
            examples.append(example[:_LONGEST])

    def all(self) -> tuple[Note, ...]:
        """Returns one note for each kind, in the order of their first appearance."""
        return tuple(
            Note(key[0], count, key[1], tuple(self._examples[key]), key in self._rewritten)
            for key, count in self._counts.items()
        )


def describe_notes(name: str, notes: Sequence[Note]) -> str:
    """Returns the notes as text, one a line, below a line with the name of the data set."""
    return "\n".join([f"{name}: {counted(len(notes), 'note')}", *(f"  {note}" for note in notes)])
