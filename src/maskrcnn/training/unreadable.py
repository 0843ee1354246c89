"""Images that cannot be read any more while a run is going on: skipped, counted, and limited.

In: the failures that loaders report. Out: a warning for each image, the lines for the end of the
run and, beyond the limit, the reason to stop.

The check before a run finds images that are missing at its start. These vanish or break later: a
network drive is away, a file is replaced.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..runtime.counted import counted

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset

_SHOWN = 3  # images in the message that stops a run
_NOUNS = {"data": "training", "validation": "validation", "unlabeled": "unlabeled"}


class UnreadableImages:
    """The unreadable images of one data set of a run.

    Args:
        data: the data set.
        share: of its images that may be unreadable, at least one image; 0 = none.
        stored: what `stored` returned in earlier sessions of a resumed run, by `part`.
        part: which of the run's data sets this is: "data", "validation" or "unlabeled".
    """

    def __init__(
        self,
        data: CocoDataset,
        share: float,
        stored: Mapping[str, Mapping[str, str]],
        part: str,
    ) -> None:
        self.num_images = len(data)
        self.limit = max(1, int(share * len(data))) if share else 0
        self.noun = _NOUNS[part]
        self.messages = {int(number): text for number, text in stored.get(part, {}).items()}
        """Reason by id of the image."""

    def note(self, image_id: int, message: str) -> None:
        """Counts an image and, the first time, warns.

        Args:
            image_id: of the image.
            message: names the file and the reason.
        """
        if image_id not in self.messages:
            self.messages[image_id] = message
            warnings.warn(f"skipped a {self.noun} image: {message}", stacklevel=2)

    def too_many(self) -> str:
        """The reason to stop, as text; empty while the images are within the limit."""
        if len(self.messages) <= self.limit:
            return ""
        shown = "; ".join([*self.messages.values()][:_SHOWN])
        more = len(self.messages) - _SHOWN
        return (
            f"{len(self.messages):,} of {counted(self.num_images, f'{self.noun} image')} cannot be "
            f"read any more (unreadable allows {self.limit}): {shown}"
            f"{f'; and {more} more' if more > 0 else ''}"
        )

    def lines(self) -> list[str]:
        """The reasons, one per image."""
        return list(self.messages.values())

    def stored(self) -> dict[str, str]:
        """As plain data for the checkpoint."""
        return {str(image_id): text for image_id, text in self.messages.items()}
