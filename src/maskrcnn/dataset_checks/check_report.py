"""The result of `check_dataset`: all problems, the usable annotations, and the text of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..annotations.coco_dataset import CocoDataset
from ..annotations.notes import Note
from ..annotations.problems import Problem, describe, listed
from ..config import ModelConfig
from ..runtime.counted import counted
from ..weights.heads import parts_of
from .fix_dataset import FixedDataset, fixed_errors
from .whole_dataset import ObjectTable


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_dataset`; `str(report)` is the text that the command prints."""

    data: CocoDataset
    """The usable part of the data set."""
    problems: tuple[Problem, ...]
    """All problems, errors first. An error makes something unusable or degrades the result; the
    others are warnings."""
    objects: ObjectTable = field(repr=False)
    """The usable annotations as arrays."""
    model: ModelConfig = field(repr=False)
    """The model that object sizes and counts were compared with: its anchors, its number of
    detections."""
    validation: CheckReport | None = None
    """The report on the validation set, if there is one."""
    fixed: FixedDataset | None = None
    """The fixed annotations: their changes, and what is left to fix by hand; None without an error
    if `fix` was not given."""
    fixed_file: Path | None = None
    """Where the fixed annotations were written, if `fix` was given."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that are errors, including those of the validation set."""
        validation = self.validation.problems if self.validation else ()
        return tuple(p for p in (*self.problems, *validation) if p.is_error)

    @property
    def fixable(self) -> int:
        """How many errors of this data set's annotations `--fix` repairs."""
        return 0 if self.fixed is None else fixed_errors(self.data, self.fixed)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What is read differently than written, and what is in the data and not used."""
        return self.data.notes

    @property
    def counts(self) -> str:
        """Numbers of images, annotations, categories and problems, in one line."""
        images = len(self.data.raw["images"])
        annotations = len(self.data.raw["annotations"])
        errors = sum(p.is_error for p in self.problems)
        warned = len(self.problems) - errors
        return (
            f"{self.data.name}: {counted(images, 'image')}, "
            f"{counted(annotations, 'annotation')}, "
            f"{counted(len(self.data.categories), 'category')}; "
            f"{counted(errors, 'error')}, {counted(warned, 'warning')}"
        )

    def describe(self, most: int | None = 20) -> str:
        """The whole report as text, grouped by kind of problem.

        Args:
            most: how many problems of each kind to list; None lists all.
        """
        lines = [self.counts]
        parts = parts_of(self.data)
        if parts.unmasked:
            use = "training learns masks from these boxes"
            if not parts.masks_from_boxes:
                use = "too few to learn masks from boxes; they train boxes and categories"
            lines.append(f" {parts.box_masks}: {use}")
        if self.fixable and self.fixed_file is None:
            lines.append(f" --fix FILE repairs {self.fixable:,} of the errors")
        for title, is_error in (("errors", True), ("warnings", False)):
            problems = [p for p in self.problems if p.is_error == is_error]
            if problems:
                lines += [f" {title}", *listed(problems, most)]

        if self.notes:
            lines += [" notes", *(f"  {note}" for note in self.notes)]
        if self.fixed is not None and self.fixed_file is not None:
            rewritten = [note for note in self.notes if note.is_rewritten]
            lines.append(f"{self.fixed_file}:")
            lines.append(describe("fixed", self.fixed.changes, "change", most))
            if rewritten:
                lines.append("written as they were read:")
                lines += [f"  {note}" for note in rewritten]
            errors = [p for p in self.fixed.remaining if p.is_error]
            lines.append(describe("to fix by hand", errors, "error", most))
        if self.validation is not None:
            lines.append(self.validation.describe(most))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.describe()
