"""Stored results as `Instances`, to draw them and to write them as annotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8

from ..annotations.coco_types import RLE
from ..annotations.rle import decode_crop
from ..config import Category
from ..instances import Instances
from ..instances.row_index import row_index
from ..ops.paste_masks import Crop
from .part_files import StoredImage, rle_of_stored


@dataclass(frozen=True, eq=False)
class StoredInstances(Instances):
    """Instances whose masks are pixels already, not grids."""

    rles: tuple[RLE, ...] = ()
    """One mask per object."""

    def __getitem__(self, index: Any) -> StoredInstances:
        rows = row_index(index, len(self))
        numbers = torch.arange(len(self))[rows].tolist()
        chosen = cast(StoredInstances, super().__getitem__(index))
        return replace(chosen, rles=tuple(self.rles[n] for n in numbers) if self.rles else ())

    @property
    def masks(self) -> Any:
        """The masks as crops, one after another."""
        return _Crops(self.rles)


class _Crops:
    def __init__(self, rles: Sequence[RLE]) -> None:
        self._rles = rles

    def __iter__(self) -> Iterator[Crop]:
        for rle in self._rles:
            mask, x0, y0 = decode_crop(rle)
            yield Crop(x0, y0, mask)


def stored_instances(
    row: StoredImage,
    categories: tuple[Category, ...],
    coco_offset: float = 0.5,
    source: UInt8[np.ndarray, "H W 3"] | Path | None = None,
) -> StoredInstances:
    """The objects of one stored image.

    Args:
        row: an image that was predicted.
        categories: the model's.
        coco_offset: pixels added to COCO's keypoints to make them continuous.
        source: the image, for overlays.
    """
    height, width = row["height"], row["width"]
    assert height is not None
    assert width is not None
    objects = row["objects"]
    boxes = torch.tensor([one["bbox"] for one in objects], dtype=torch.float64).reshape(-1, 4)
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).float()
    label = {category.id: n for n, category in enumerate(categories)}
    rles = tuple(rle_of_stored(row, one["rle"]) for one in objects if one["rle"] is not None)
    has_masks = bool(rles) and len(rles) == len(objects)
    num_keypoints = max((len(category.keypoints) for category in categories), default=0)
    keypoints = torch.zeros(len(objects), num_keypoints, 3)
    for n, one in enumerate(objects):
        if one["keypoints"]:
            values = torch.tensor(one["keypoints"]).reshape(-1, 3)
            values[:, :2] += coco_offset
            keypoints[n, : len(values)] = values

    return StoredInstances(
        size=(height, width),
        boxes=corners,
        scores=torch.tensor([one["score"] for one in objects], dtype=torch.float32),
        labels=torch.tensor([label[one["category_id"]] for one in objects], dtype=torch.int64),
        categories=categories,
        mask_grids=torch.zeros(len(objects), 1, 1) if has_masks else None,
        keypoints=keypoints if num_keypoints else None,
        image_id=row["image_id"],
        file_name=row["file_name"],
        source=source,
        rles=rles if has_masks else (),
    )
