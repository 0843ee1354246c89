"""Masks of N objects, kept as small grids and drawn into the image on demand.

In:  grids [N, S, S] over the boxes [N, 4] of the objects, and the image's size.
Out: crops, dense masks, COCO RLE, areas, polygons, or one image of labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from ..annotations import contours
from ..annotations.coco_types import RLE
from ..annotations.rle import encode_crop
from ..ops.paste_masks import Crop, PasteRule, dense_masks, paste_masks


@dataclass(frozen=True)
class Masks:
    """The masks of N objects, drawn into the image one at a time on demand.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> image, truth = draw_micrograph(0, (96, 128))
        >>> masks = mr.predict(mr.load("nuclei"), image).masks
        >>> masks.dense().shape == (len(masks), *image.shape[:2])
        True
    """

    grids: Float[Tensor, "N S S"]
    """Probability 0..1 that a cell belongs to the object, over a grid on its box."""
    boxes: Float[Tensor, "N 4"]
    """xyxy in pixels of the image."""
    size: tuple[int, int]
    """Height and width of the image."""
    rule: PasteRule = "border"
    """How the grids are drawn into the image (see `MaskHeadConfig.paste`)."""
    threshold: float = 0.5
    """A pixel belongs to the object if its probability is at least this."""

    def __len__(self) -> int:
        return len(self.grids)

    def __iter__(self) -> Iterator[Crop]:
        """Yields each mask as a crop of the image around its box."""
        return paste_masks(self.grids, self.boxes, self.size, self.rule, self.threshold)

    def dense(self) -> Bool[Tensor, "N H W"]:
        """Returns masks of the whole image, which take N * H * W bytes."""
        return torch.from_numpy(dense_masks(iter(self), len(self), self.size))

    def rle(self) -> list[RLE]:
        """Returns COCO's compressed RLE of each mask: {"size": [H, W], "counts": str}."""
        encoded: list[Any] = [encode_crop(crop.mask, crop.x0, crop.y0, self.size) for crop in self]
        return encoded

    def area(self) -> Int64[Tensor, "N"]:
        """Returns the number of pixels of each mask."""
        return torch.tensor([int(crop.mask.sum()) for crop in self], dtype=torch.int64)

    def polygons(self, simplify: float = 0.0, holes: bool = True) -> list[list[contours.Polygon]]:
        """Returns the contours of each mask; see `Instances.polygons`."""
        if not 0 <= simplify < np.inf:
            raise ValueError(f"simplify: expected 0 or more pixels, got {simplify!r}")

        polygons = []
        for crop in self:
            traced = [
                contour + np.array([crop.x0, crop.y0]) for contour in contours.trace(crop.mask)
            ]
            parts = [part for part in traced if holes or contours.signed_area(part) > 0]
            if simplify:
                parts = [contours.simplify(part, simplify) for part in parts]
            polygons.append(parts)
        return polygons

    def label_image(self) -> Int32[np.ndarray, "H W"]:
        """Returns the number of the object at each pixel; see `Instances.label_image`."""
        labels = np.zeros(self.size, np.int32)
        for number, crop in enumerate(self, start=1):
            height, width = crop.mask.shape
            part = labels[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width]
            part[crop.mask & (part == 0)] = number
        return labels
