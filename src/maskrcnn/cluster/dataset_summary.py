"""What a job has done, in bounded memory, for a terminal and for Python."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..runtime.counted import counted
from .counted_images import CountedImages
from .part_files import PartInfo
from .part_worker import PartDone

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 20  # errors


@dataclass
class DatasetSummary:
    """What `predict_dataset` or `collect_parts` has counted, over all parts of the call."""

    out: str
    images: int = 0
    """Images that were predicted, now or earlier."""
    errors: int = 0
    """Images that could not be predicted."""
    first_errors: list[str] = field(default_factory=list)
    """At most 20 of their errors; of this run only."""
    objects: Counter[str] = field(default_factory=Counter)
    """How many objects of each category were detected."""
    images_with: Counter[str] = field(default_factory=Counter)
    """In how many images each category was detected."""
    several_frames: int = 0
    """Images with several frames, of which the first was used."""
    parts: int = 0
    """Part files."""
    old_parts: int = 0
    """Part files that an earlier run had finished."""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    """What is in the source and not used, and what is unusual, as sentences."""
    precisions: Counter[str] = field(default_factory=Counter)
    """How many parts were computed in each precision."""
    uncompared: CountedImages = field(default_factory=CountedImages)
    """With `retry_changed`: images that were kept without knowing whether they have changed."""

    def add(self, done: PartDone) -> None:
        """Adds a part."""
        self.add_info(done.info)
        self.old_parts += done.is_old
        self.first_errors += done.errors[: _SHOWN - len(self.first_errors)]
        self.uncompared.add_all(done.uncompared)

    def add_info(self, info: PartInfo) -> None:
        """Adds the counts of a part."""
        self.parts += 1
        self.images += info.images
        self.errors += info.errors
        self.several_frames += info.several_frames
        self.objects.update(info.objects)
        self.images_with.update(info.images_with)
        self.precisions[info.precision] += 1

    def table(self) -> Table:
        """Objects per category, for a terminal."""
        from rich.table import Table

        time = f" in {self.seconds:.1f} s" if self.seconds else ""
        before = f" ({self.old_parts:,} finished before)" if self.old_parts else ""
        counts = f"{counted(self.images, 'image')}, {counted(self.parts, 'file')}"
        table = Table(title=f"{counts}{before}{time}")
        for name in ("category", "objects", "in images"):
            table.add_column(name, justify="left" if name == "category" else "right")

        for name, count in self.objects.most_common():
            table.add_row(name, f"{count:,}", f"{self.images_with[name]:,}")
        if len(self.objects) != 1:
            table.add_row("all", f"{self.objects.total():,}", f"{self.images:,}", style="bold")
        return table

    def remarks(self) -> list[str]:
        """Everything unusual, as sentences."""
        remarks = list(self.notes)
        if self.several_frames:
            remarks.append(
                f"images with several frames, of which the first was used: {self.several_frames:,}"
            )
        if self.uncompared.count:
            remarks.append(
                "images that were kept although they may have changed, because size and time of "
                f"their files are unknown: {self.uncompared}; to predict them again, "
                "use another folder for the results"
            )

        if len(self.precisions) > 1:
            counts = ", ".join(f"{count:,} in {name}" for name, count in self.precisions.items())
            remarks.append(
                f"parts were computed in different precisions ({counts}), so that results depend "
                "on the machine; use one --dtype for all"
            )
        return remarks
