"""The answer for one image, in that image's own pixels.

N objects, best first: boxes [N, 4] xyxy, scores [N], labels [N]; where the model has the heads also a mask and keypoints for each. Masks stay small
grids on their boxes until somebody asks: `masks()` gives them dense, as COCO RLE, or as areas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from .annotations.rle import encode_crop
from .config import Category
from .images.read import read_image
from .ops.paste_masks import Crop, PasteRule, dense_masks, paste_masks


@dataclass(frozen=True)
class Masks:
    """The masks of N objects, drawn into the image one at a time when they are asked for."""

    grids: Float[Tensor, "N S S"]
    """Probability over the grid of each box."""
    boxes: Float[Tensor, "N 4"]
    size: tuple[int, int]
    rule: PasteRule = "border"
    threshold: float = 0.5

    def __len__(self) -> int:
        return len(self.grids)

    def __iter__(self) -> Iterator[Crop]:
        """Each mask as the part of the image that it can touch."""
        return paste_masks(self.grids, self.boxes, self.size, self.rule, self.threshold)

    def dense(self) -> Bool[Tensor, "N H W"]:
        """Whole-image masks: N * H * W bytes."""
        return torch.from_numpy(dense_masks(iter(self), len(self), self.size))

    def rle(self) -> list[dict[str, Any]]:
        """COCO's compressed RLE, {"size": [H, W], "counts": str} for each object."""
        return [encode_crop(crop.mask, crop.x0, crop.y0, self.size) for crop in self]

    def area(self) -> Int64[Tensor, "N"]:
        """Pixels of each object."""
        return torch.tensor([int(crop.mask.sum()) for crop in self], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Instances:
    """The objects that were found in one image, best first.

    `result[2]`, `result[:5]` and `result[result.scores > 0.8]` are Instances again; iterating gives them one by one.
    """

    size: tuple[int, int]
    """Height and width of the image."""
    boxes: Float[Tensor, "N 4"]
    """xyxy in continuous pixels, inside the image."""
    scores: Float[Tensor, "N"]
    labels: Int64[Tensor, "N"]
    """Indices into `categories`."""
    categories: tuple[Category, ...] = field(repr=False)
    mask_grids: Float[Tensor, "N S S"] | None = None
    """Probability, over the grid of the own box, that a cell belongs to the object; None without a mask head."""
    keypoints: Float[Tensor, "N J 3"] | None = None
    """x, y, score (0..1); the keypoints of the object's own category first, zeros beyond them."""
    keypoint_logits: Float[Tensor, "N J"] | None = None
    """Raw height of each heat map's peak."""
    paste: PasteRule = "border"
    mask_threshold: float = 0.5
    coco_offset: float = 0.5
    """What was added to COCO's integer keypoints to make them continuous."""
    image_id: int | None = None
    file_name: str | None = None
    source: UInt8[np.ndarray, "H W 3"] | Path | None = field(default=None, repr=False)
    """The image, or the file from which it is read again when it is drawn on."""
    intensity_range: tuple[float, float] | None = None
    """How values of a 16-bit or float `source` file become 0..255."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int | slice | Tensor | np.ndarray | list[Any]) -> Instances:
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"object {index} of {len(self)}")
            index = slice(index, index + 1 or None)
        elif not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.boxes.device).reshape(-1)
            index = index if index.dtype == torch.bool else index.long()
        rows = {
            name: getattr(self, name)
            for name in ("boxes", "scores", "labels", "mask_grids", "keypoints", "keypoint_logits")
        }
        return replace(
            self, **{name: value[index] for name, value in rows.items() if value is not None}
        )

    def __iter__(self) -> Iterator[Instances]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        where = f"{self.file_name}, " if self.file_name else ""
        return f"Instances({where}{self.size[0]}x{self.size[1]}: {counts or 'no objects'})"

    @property
    def names(self) -> list[str]:
        """The category's name of each object."""
        return [self.categories[label].name for label in self.labels.tolist()]

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image, RGB; one of several files is read again.

        Raises:
            ValueError: these instances do not know their image.
        """
        if self.source is None:
            raise ValueError(
                "these instances carry no image; give one: dataclasses.replace(instances, source=image)"
            )
        return (
            read_image(self.source, self.intensity_range)
            if isinstance(self.source, Path)
            else self.source
        )

    def masks(self) -> Masks:
        """The masks, not yet drawn: `.dense()`, `.rle()`, `.area()`, or one crop after the other.

        Raises:
            ValueError: the model has no mask head.
        """
        if self.mask_grids is None:
            raise ValueError(
                "there are no masks: the model has no mask head (its config's mask is None)"
            )
        return Masks(self.mask_grids, self.boxes, self.size, self.paste, self.mask_threshold)

    def to_coco(self, image_id: int | None = None) -> list[dict[str, Any]]:
        """COCO results, one dict an object: bbox (xywh), segmentation (compressed RLE), keypoints, score, category_id, image_id, file_name.

        keypoints are x, y, score for each keypoint of the object's category, in COCO's pixel convention; an object without a skeleton has none.

        Raises:
            ValueError: no image_id, neither here nor in the instances.
        """
        image_id = self.image_id if image_id is None else image_id
        if image_id is None:
            raise ValueError("COCO results name their image by number; give to_coco(image_id=...)")
        origin = {"image_id": image_id} | ({"file_name": self.file_name} if self.file_name else {})
        boxes = self.boxes.double().cpu()
        xywh = (
            torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).numpy().round(4).tolist()
        )
        rle = self.masks().rle() if self.mask_grids is not None else None
        keypoints = self._coco_keypoints() if self.keypoints is not None else None
        results = []
        for n, (label, score) in enumerate(
            zip(self.labels.tolist(), self.scores.tolist(), strict=True)
        ):
            category = self.categories[label]
            entry = {**origin, "category_id": category.id, "bbox": xywh[n], "score": score}
            if rle is not None:
                entry["segmentation"] = rle[n]
            if keypoints is not None and category.keypoints:
                entry["keypoints"] = keypoints[n, : len(category.keypoints)].ravel().tolist()
            results.append(entry)
        return results

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections` (dense masks; keypoints as `data["keypoints"]`).

        Raises:
            ImportError: the package supervision is not installed.
        """
        try:
            supervision = import_module("supervision")
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs the package supervision: pip install maskrcnn[supervision]"
            ) from error
        data: dict[str, Any] = {"class_name": np.array(self.names, dtype=str)}
        if self.keypoints is not None:
            data["keypoints"] = self.keypoints.cpu().numpy()
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            mask=None if self.mask_grids is None else self.masks().dense().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data=data,
        )

    def save(self, path: str | Path) -> None:
        """Draws the objects on the image and writes it, in the format that the name's ending says."""
        from .draw import draw_instances

        draw_instances(self).save(path)

    def _coco_keypoints(self) -> Float[np.ndarray, "N J 3"]:
        assert self.keypoints is not None
        keypoints = self.keypoints.double().cpu().numpy().copy()
        keypoints[..., :2] = (keypoints[..., :2] - self.coco_offset).round(4)
        return keypoints
