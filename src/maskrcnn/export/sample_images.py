"""Images of one's own on which an exported file is compared with its model.

In:  a folder or a pattern of images, or annotated images, which then also give average precision.
Out: `Samples`: at most so many of them, spread evenly, read one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..annotations.coco_dataset import CocoDataset, UnusableEntries
from ..annotations.coco_types import CocoContent
from ..config import InputConfig
from ..formats.load_dataset import load_dataset
from ..images.image_files import image_files, is_pattern
from ..images.read import read_image
from .made_images import ImageGroup

_WITHOUT_ANNOTATIONS = (
    "Repair or remove these, or compare on the images alone: "
    "pass their folder as samples= (--samples)"
)


@dataclass(frozen=True)
class Samples:
    """The chosen images."""

    source: str
    total: int
    """Number of images in the source."""
    chosen: list[Path] | list[int]
    """Files, or indices into `data`."""
    data: CocoDataset | None = None
    """The annotated images."""

    @classmethod
    def of(cls, source: str | Path, images: str | Path | None, most: int) -> Samples:
        """Chooses images, spread evenly over the source.

        Args:
            source: a folder or a pattern of images; or an annotation file, or a split of one.
            images: folder of the images of an annotation file.
            most: number of images to choose at most.

        Raises:
            ValueError: `most` is below 1, there are no images, or the annotations are unusable.
        """
        if most < 1:
            raise ValueError(f"max_samples: expected at least 1, got {most}")
        if images is None and (Path(source).is_dir() or is_pattern(source)):
            files = image_files(source)
            chosen = [files[i] for i in _spread(len(files), most)]
            return cls(str(source), len(files), chosen)

        try:
            data = load_dataset(source, images)
        except UnusableEntries as error:
            raise UnusableEntries(error.problems, error.usable, _WITHOUT_ANNOTATIONS) from None
        return cls(str(source), len(data), _spread(len(data), most), data)

    def groups(self, config: InputConfig) -> Iterator[ImageGroup]:
        """Yields each image as a group of its own.

        Raises:
            ImageError: a file cannot be read.
        """
        for one in self.chosen:
            if self.data is None:
                assert isinstance(one, Path)
                pixels = read_image(one, config.intensity_range)
                yield ImageGroup(one.name, [pixels])
            else:
                assert isinstance(one, int)
                record = self.data[one]
                pixels = self.data.image(one, config.intensity_range)
                yield ImageGroup(record.file_name, [pixels], [record.image_id])

    def truth(self) -> CocoContent | None:
        """Returns the annotations of the chosen images; None without annotations."""
        if self.data is None:
            return None
        content = self.data.truth()
        images = [content["images"][i] for i in self.chosen if isinstance(i, int)]
        ids = {image["id"] for image in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        return {**content, "images": images, "annotations": annotations}


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` indices spread evenly over 0 ... count - 1."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()
