"""The predictions for one image, in that image's own pixels.

N objects, best first: boxes [N, 4] xyxy, scores [N] and labels [N]; also masks and keypoints if the
model has those heads. Masks are kept as small grids on their boxes. `masks()` converts them to
dense masks, to COCO RLE or to areas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from .annotations.coco_types import RLE, CocoResult
from .annotations.rle import encode_crop
from .config import Category
from .images.read import read_image
from .ops.paste_masks import Crop, PasteRule, dense_masks, paste_masks


@dataclass(frozen=True)
class Masks:
    """The masks of N objects, drawn into the image one at a time on demand.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> image, truth = draw_micrograph(seed=0)
        >>> masks = mr.predict(mr.load("nuclei"), image).masks()
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


@dataclass(frozen=True, eq=False)
class Instances:
    """The objects predicted in one image, best first.

    Indexing with an integer, a slice, a mask or a list of integers returns Instances again;
    iterating yields them one by one.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> image, truth = draw_micrograph(seed=0)
        >>> instances = mr.predict(mr.load("nuclei"), image)
        >>> confident = instances[instances.scores > 0.5]
        >>> 0 < len(confident) <= len(instances)
        True
        >>> instances[0].names
        ['nucleus']
    """

    size: tuple[int, int]
    """Height and width of the image."""
    boxes: Float[Tensor, "N 4"]
    """xyxy in continuous pixels, inside the image."""
    scores: Float[Tensor, "N"]
    """0..1."""
    labels: Int64[Tensor, "N"]
    """Indices into `categories`."""
    categories: tuple[Category, ...] = field(repr=False)
    """The model's categories."""
    mask_grids: Float[Tensor, "N S S"] | None = None
    """Probability 0..1 that a cell belongs to the object, over a grid on its box. None: no mask
    head."""
    keypoints: Float[Tensor, "N J 3"] | None = None
    """x, y, score (0..1). The keypoints of the object's category come first, followed by zeros.
    None: no keypoint head."""
    keypoint_logits: Float[Tensor, "N J"] | None = None
    """Height of each heat map's peak before normalization."""
    paste: PasteRule = "border"
    """How masks are drawn into the image (see `MaskHeadConfig.paste`)."""
    mask_threshold: float = 0.5
    """A pixel belongs to the object if its probability is at least this."""
    coco_offset: float = 0.5
    """Pixels added to COCO's integer keypoints to make them continuous."""
    image_id: int | None = None
    """The image's id in the annotation file, if known."""
    file_name: str | None = None
    """The image's file name, if known."""
    source: UInt8[np.ndarray, "H W 3"] | Path | None = field(default=None, repr=False)
    """The image, or the file to read it from again. None: unknown."""
    intensity_range: tuple[float, float] | None = None
    """Values of a 16-bit or float `source` file that map to 0 and 255. None: its type's full
    range."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int | slice | Tensor | np.ndarray | list[Any]) -> Instances:
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"object index {index} is out of range for {len(self)} objects")
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
        file_name = f"{self.file_name}, " if self.file_name else ""
        return f"Instances({file_name}{self.size[0]}x{self.size[1]}: {counts or 'no objects'})"

    @property
    def names(self) -> list[str]:
        """The category name of each object."""
        return [self.categories[label].name for label in self.labels.tolist()]

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image, RGB; read from its file again if `source` is a path.

        Raises:
            ValueError: these instances carry no image.
            ImageError: the file cannot be read.
        """
        if self.source is None:
            raise ValueError(
                "these instances carry no image; "
                "add it: dataclasses.replace(instances, source=image)"
            )
        if isinstance(self.source, Path):
            # the file was read before, perhaps with a higher limit
            return read_image(self.source, self.intensity_range, self.size[0] * self.size[1])
        return self.source

    def masks(self) -> Masks:
        """Returns the masks, not yet drawn into the image.

        Call `.dense()`, `.rle()` or `.area()` on them, or iterate to get one crop per object.

        Raises:
            ValueError: the model has no mask head.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(seed=0)[0])
            >>> masks = instances.masks()
            >>> masks.area().min() > 0
            tensor(True)
            >>> masks.rle()[0]["size"]
            [256, 320]
        """
        if self.mask_grids is None:
            raise ValueError("no masks: the model has no mask head (its config's mask is None)")
        return Masks(self.mask_grids, self.boxes, self.size, self.paste, self.mask_threshold)

    def to_coco(self, image_id: int | None = None) -> list[CocoResult]:
        """Converts to COCO results, one dictionary per object.

        Args:
            image_id: the image's id in the annotation file; by default the instances' own.

        Returns:
            image_id, category_id, category_name, score and bbox (xywh); file_name if known;
            segmentation
            (compressed RLE) if the model has a mask head; keypoints if the object's category has
            them: x, y, score each, in COCO's pixel convention.

        Raises:
            ValueError: no image id, neither given nor in the instances.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(seed=0)[0])
            >>> results = instances.to_coco(image_id=7)
            >>> sorted(results[0])
            ['bbox', 'category_id', 'category_name', 'image_id', 'score', 'segmentation']
        """
        image_id = self.image_id if image_id is None else image_id
        if image_id is None:
            raise ValueError("COCO results need an image id; pass to_coco(image_id=...)")

        boxes = self.boxes.double().cpu()
        xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
        bboxes = xywh.numpy().round(4).tolist()
        rle = self.masks().rle() if self.mask_grids is not None else None
        keypoints = self._coco_keypoints() if self.keypoints is not None else None

        origin = {"image_id": image_id} | ({"file_name": self.file_name} if self.file_name else {})
        results = []
        for n, (label, score) in enumerate(
            zip(self.labels.tolist(), self.scores.tolist(), strict=True)
        ):
            category = self.categories[label]
            entry = cast(
                CocoResult,
                {
                    **origin,
                    "category_id": category.id,
                    "category_name": category.name,
                    "bbox": bboxes[n],
                    "score": score,
                },
            )
            if rle is not None:
                entry["segmentation"] = rle[n]
            if keypoints is not None and category.keypoints:
                entry["keypoints"] = keypoints[n, : len(category.keypoints)].ravel().tolist()
            results.append(entry)
        return results

    def to_supervision(self) -> Any:
        """Converts to `supervision.Detections`, for the package supervision.

        Returns:
            Boxes, dense masks, confidence and class ids; names and keypoints in `data`.

        Raises:
            ImportError: the package supervision is not installed.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(seed=0)[0])
            >>> try:
            ...     count = len(instances.to_supervision())
            ... except ImportError:  # supervision is not installed
            ...     count = len(instances)
            >>> count == len(instances)
            True
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
        """Draws the objects on the image and writes it to a file.

        Args:
            path: the file; its suffix determines the format, such as .png or .jpg.

        Raises:
            ValueError: these instances carry no image, or the suffix is unknown.

        Example:
            >>> import maskrcnn as mr
            >>> from maskrcnn.synthetic.micrograph import draw_micrograph
            >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(seed=0)[0])
            >>> instances.save("nuclei.png")
        """
        from .draw import draw_instances

        draw_instances(self).save(path)

    def _coco_keypoints(self) -> Float[np.ndarray, "N J 3"]:
        assert self.keypoints is not None
        keypoints = self.keypoints.double().cpu().numpy().copy()
        keypoints[..., :2] = (keypoints[..., :2] - self.coco_offset).round(4)
        return keypoints
