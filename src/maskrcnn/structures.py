"""The data that the model's parts exchange: padded tensors with a `valid` mask.

Coordinates are continuous pixels of the model's input: pixel i covers [i, i + 1). Boxes are
(x0, y0, x1, y1), sizes (height, width).

Letters: B images, N true objects, P proposals, D detections, C categories, J keypoints, S side of
the mask grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from .ops.device import is_async

T = TypeVar("T", bound="_Tensors")


class _Tensors:
    """Moves all tensors of a dataclass together."""

    def to(self: T, device: torch.device | str, non_blocking: bool = False) -> T:
        """Copies all tensors to another device.

        Args:
            device: the device to copy to.
            non_blocking: return before the copies have finished. Otherwise they run at the same
                time, and one host-device sync waits for all of them.
        """
        moved = self._map(lambda t: t.to(device, non_blocking=True))
        sources, targets = (
            {v.device for v in vars(part).values() if isinstance(v, Tensor)}
            for part in (self, moved)
        )

        if sources != targets and not non_blocking:
            for queue in filter(is_async, sources | targets):
                torch.accelerator.synchronize(queue)
        return moved

    def pin_memory(self: T) -> T:
        """Copies all tensors to page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda t: t.pin_memory())

    def _map(self: T, function: Callable[[Tensor], Tensor]) -> T:
        changed: dict[str, Any] = {}
        for f in fields(self):  # ty: ignore[invalid-argument-type]
            value = getattr(self, f.name)
            changed[f.name] = function(value) if isinstance(value, Tensor) else value
        return replace(self, **changed)  # ty: ignore[invalid-argument-type]


@dataclass(frozen=True)
class Batch(_Tensors):
    """The images of a batch at the model's input size, padded at the right and the bottom.

    Example:
        >>> import numpy as np
        >>> import maskrcnn as mr
        >>> from maskrcnn.preprocess import prepare
        >>> config = mr.maskrcnn_r18_small()
        >>> image, to_model = prepare(np.zeros((60, 100, 3), np.uint8), config.input)
        >>> mr.Batch.collate([image], to_model=[to_model]).images.shape
        torch.Size([1, 3, 64, 128])
    """

    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]
    """RGB, 0..255, not normalized; padding is zero. uint8 where possible: a quarter of the bytes to
    copy to the device."""
    sizes: Int64[Tensor, "B 2"]
    """Height and width of each image without its padding."""
    to_model: Float[Tensor, "B 3 3"]
    """Matrix from the pixels of the original image to those of the model's input."""
    seeds: Int64[Tensor, "B"]
    """One seed per image for the random choice of anchors and RoIs. The choice therefore depends on
    the image, not on its index in the batch."""
    image_ids: tuple[int, ...] = ()
    """The images' ids in the annotation file; may be empty."""
    normalized: bool = False
    """The images are already normalized (`preprocess.prepare_as_torchvision`); the model then does
    not normalize them."""

    @classmethod
    def collate(
        cls,
        images: Sequence[Tensor],
        size_divisor: int = 32,
        to_model: Sequence[Tensor] | None = None,
        seeds: Sequence[int] | None = None,
        image_ids: Sequence[int] = (),
        normalized: bool = False,
    ) -> Batch:
        """Pads images to one tensor.

        Args:
            images: each [3, h, w], RGB, 0..255. The result is uint8 if all are, else float32.
            size_divisor: pad both sides to a multiple of this many pixels.
            to_model: a matrix [3, 3] per image from its original pixels; by default the identity.
            seeds: one per image; by default random.
            image_ids: one per image; may be empty.
            normalized: the images are already normalized.

        Raises:
            ValueError: no images.
        """
        if not images:
            raise ValueError("a batch needs at least one image, got none")

        height, width = (
            -(-max(i.shape[d] for i in images) // size_divisor) * size_divisor for d in (1, 2)
        )
        dtype = torch.float32
        if all(image.dtype == torch.uint8 for image in images):
            dtype = torch.uint8
        padded = torch.zeros(len(images), 3, height, width, dtype=dtype, device=images[0].device)
        for row, image in zip(padded, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]].copy_(image)

        if to_model is None:
            matrices = torch.eye(3).expand(len(images), 3, 3)
        else:
            matrices = torch.stack(list(to_model))
        if seeds is None:
            numbers = torch.randint(2**62, (len(images),))
        else:
            numbers = torch.tensor(list(seeds))

        return cls(
            images=padded,
            sizes=torch.tensor([i.shape[1:] for i in images], device=padded.device),
            to_model=matrices.to(padded.device, torch.float32),
            seeds=numbers.to(padded.device),
            image_ids=tuple(image_ids),
            normalized=normalized,
        )


@dataclass(frozen=True)
class Truth(_Tensors):
    """The annotations of a batch. Each object may have any of a box, a mask and keypoints.

    Example:
        >>> import maskrcnn as mr
        >>> mr.Truth.empty(images=2, objects=5).boxes.shape
        torch.Size([2, 5, 4])
    """

    boxes: Float[Tensor, "B N 4"]
    """xyxy. For an object annotated by keypoints alone: the hull of its visible keypoints."""
    labels: Int64[Tensor, "B N"]
    """0..C-1."""
    valid: Bool[Tensor, "B N"]
    """False in padding rows."""
    ignore: Bool[Tensor, "B N"]
    """Crowd and ignore regions, which are neither object nor background."""
    has_box: Bool[Tensor, "B N"]
    """The object's box is annotated."""
    masks: UInt8[Tensor, "B N S S"]
    """Coverage 0..255 of each cell of an S x S grid over the object's own box."""
    has_mask: Bool[Tensor, "B N"]
    """The object's mask is annotated."""
    spans: Bool[Tensor, "B N 2"]
    """For objects that have a box and no mask: whether they reach all columns (x) and all rows (y)
    of it. A crop can cut off what reached them."""
    keypoints: Float[Tensor, "B N J 3"]
    """x, y, visibility (0 unlabeled, 1 hidden, 2 visible), in the model's heat-map channels: a
    category's keypoints are at its slice."""
    has_keypoints: Bool[Tensor, "B N"]
    """The object's keypoints are annotated."""
    points: Float[Tensor, "B N P 3"] | None = None
    """x, y, label of points that are annotated instead of a mask: 1 beside the object, 2 on it, 0
    no point. None: no object has such points."""
    labeled: Bool[Tensor, "B C"] | None = None
    """Whether all objects of a category are annotated in an image. False: unannotated regions may
    hold more of them. None: all objects of all categories are annotated."""
    annotation_ids: Int64[Tensor, "B N"] | None = None
    """Id of the annotation that each object comes from, for heads of one's own; -1 = none."""

    @classmethod
    def empty(
        cls, images: int = 1, objects: int = 0, mask_size: int = 112, keypoints: int = 0
    ) -> Truth:
        """Returns a truth of padding rows only, which is also the truth of images without objects.

        Args:
            images: number of images.
            objects: number of padding rows per image.
            mask_size: side of the mask grids in cells.
            keypoints: number of keypoint channels.
        """
        shape = (images, objects)
        flags = {
            name: torch.zeros(shape, dtype=torch.bool)
            for name in ("valid", "ignore", "has_box", "has_mask", "has_keypoints")
        }
        return cls(
            boxes=torch.zeros(*shape, 4),
            labels=torch.zeros(shape, dtype=torch.int64),
            masks=torch.zeros(*shape, mask_size, mask_size, dtype=torch.uint8),
            spans=torch.zeros(*shape, 2, dtype=torch.bool),
            keypoints=torch.zeros(*shape, keypoints, 3),
            **flags,
        )

    @classmethod
    def collate(cls, truths: Sequence[Truth]) -> Truth:
        """Concatenates truths along the images, padding the objects to the largest count.

        Args:
            truths: each of one or more images, with equal mask sides and keypoint channels.
        """
        most = max(t.boxes.shape[1] for t in truths)
        has_ids = all(t.annotation_ids is not None for t in truths)

        def concatenated(name: str) -> Tensor:
            parts = [getattr(t, name) for t in truths]
            return torch.cat(
                [
                    torch.cat([p, p.new_zeros(p.shape[0], most - p.shape[1], *p.shape[2:])], dim=1)
                    for p in parts
                ]
            )

        return cls(
            **{f.name: concatenated(f.name) for f in fields(cls) if f.default is MISSING},
            points=cls._points(truths, most),
            labeled=cls._labeled(truths),
            annotation_ids=concatenated("annotation_ids") if has_ids else None,
        )

    @staticmethod
    def _points(truths: Sequence[Truth], most: int) -> Float[Tensor, "B N P 3"] | None:
        count = max(0 if t.points is None else t.points.shape[2] for t in truths)
        none = truths[0].boxes.new_zeros(1, 1, 1, 3)
        rows = [
            none.expand(len(t.boxes), 1, 1, 3) if t.points is None else t.points for t in truths
        ]
        rows = [F.pad(p, (0, 0, 0, count - p.shape[2], 0, most - p.shape[1])) for p in rows]
        return torch.cat(rows) if count else None

    @staticmethod
    def _labeled(truths: Sequence[Truth]) -> Bool[Tensor, "B C"] | None:
        partial = [t.labeled for t in truths if t.labeled is not None]
        if not partial:
            return None
        every = torch.ones_like(partial[0][:1])
        rows = [every.expand(len(t.boxes), -1) if t.labeled is None else t.labeled for t in truths]
        return torch.cat(rows)


@dataclass(frozen=True)
class Proposals(_Tensors):
    """Regions that the RPN proposes as objects, best first."""

    boxes: Float[Tensor, "B P 4"]
    """xyxy."""
    scores: Float[Tensor, "B P"]
    """Objectness logits."""
    valid: Bool[Tensor, "B P"]
    """False in padding rows."""


@dataclass(frozen=True)
class Detections(_Tensors):
    """The model's predictions for a batch, best first, in model-input pixels."""

    boxes: Float[Tensor, "B D 4"]
    """xyxy."""
    scores: Float[Tensor, "B D"]
    """0..1."""
    labels: Int64[Tensor, "B D"]
    """0..C-1."""
    valid: Bool[Tensor, "B D"]
    """False in padding rows."""
    masks: Float[Tensor, "B D S S"] | None = None
    """Probability 0..1 that a cell belongs to the object, over a grid on its box. None: no mask
    head."""
    keypoints: Float[Tensor, "B D J 3"] | None = None
    """x, y, score (the normalized peak, 0..1). The keypoints of the detection's category come
    first, followed by zeros. None: no keypoint head."""
    keypoint_logits: Float[Tensor, "B D J"] | None = None
    """Height of each heatmap's peak before normalization."""
    num_valid: int | None = None
    """Number of valid rows in the whole batch, if the host knows it without a sync."""
