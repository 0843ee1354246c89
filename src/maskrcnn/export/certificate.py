"""The certificate of an exported file: what was compared with the model, and how they differ.

`certify` fills it in; it is written beside the file, as JSON and as a page.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..instances import Instances
from ..runtime.counted import counted
from .comparison import BOUNDS, Bounds, ImageComparison

FEW_OBJECTS = 10
"""Fewer compared objects prove little; the certificate says so."""


class ComparedImage(NamedTuple):
    """An image for the page."""

    name: str
    pixels: UInt8[np.ndarray, "H W 3"]
    model: Instances
    file: Instances


@dataclass
class GroupResult:
    """The comparison of one group of images."""

    name: str
    size: tuple[int, int]
    """Height and width of the images."""
    input_size: tuple[int, int]
    """Height and width at which the network saw them."""
    batch: int
    without_objects: int
    """Images without objects."""
    comparison: ImageComparison


@dataclass
class PixelComparison:
    """How far the pixels that a file resizes are from the model's."""

    largest: float = 0.0
    """In gray levels; for models that normalize first, in normalized units."""
    different: int = 0
    pixels: int = 0

    @property
    def share(self) -> float:
        """Share of the pixels that differ."""
        return self.different / max(self.pixels, 1)


@dataclass
class Certificate:
    """What was compared, and how far the file and the model are apart."""

    file: str
    format: str
    input: str
    """"uint8" or "prepared": what the file takes."""
    hashes: dict[str, str]
    """SHA-256 of each part of the file, and of the weights."""
    versions: dict[str, str]
    processor: str
    created: str
    bounds: Bounds = BOUNDS
    groups: list[GroupResult] = field(default_factory=list)
    pixels: PixelComparison | None = None
    """None for files that take prepared pixels."""
    samples: dict[str, Any] | None = None
    """Source and number of the samples, if there were any."""
    precision: dict[str, dict[str, dict[str, float]]] | None = None
    """Average precision on annotated samples: task -> metric -> {"model": AP, "file": AP}."""
    has_masks: bool = True
    """Whether the model has a mask head."""
    has_keypoints: bool = True
    """Whether the model has a keypoint head."""
    seconds: float = 0.0

    @property
    def total(self) -> ImageComparison:
        """The comparison of all groups together."""
        total = ImageComparison()
        for group in self.groups:
            total.add(group.comparison)
        return total

    @property
    def num_images(self) -> int:
        """Number of compared images."""
        return sum(group.batch for group in self.groups)

    @property
    def without_objects(self) -> int:
        """Number of compared images without objects."""
        return sum(group.without_objects for group in self.groups)

    @property
    def warnings(self) -> list[str]:
        """What limits the proof."""
        found = []
        total = self.total
        if total.matched < FEW_OBJECTS:
            found.append(
                f"compared only {counted(total.matched, 'object')}: the drawn images show little "
                "that this model detects. Compare on images of your own with --samples"
            )
        if not self.without_objects:
            found.append("the model detected something in every image, also in the empty ones")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields and totals as plain data, for JSON."""
        return asdict(self) | {
            "total": asdict(self.total),
            "num_images": self.num_images,
            "without_objects": self.without_objects,
            "warnings": self.warnings,
        }
